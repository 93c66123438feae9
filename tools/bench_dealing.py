"""Compares scoring every reward on every rank with scoring shares and gathering them.

    torchrun --standalone --nproc-per-node 2 -m tools.bench_dealing [SAMPLES ...]

Measures processor time per rank and sample, both ways in turns. Prints medians of rank 0, the ratio
shares / alike, and whether both give the same rewards.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from statistics import median

import torch.distributed as dist

from selfemo.config.schema import RewardConfig
from selfemo.corpora.conversation import Corpus, Turn
from selfemo.corpora.registry import load_corpus
from selfemo.emotions.answer import Answer
from selfemo.process.dealing import Deal, one_by_one, over_group
from selfemo.rewards.scoring import Rewards
from selfemo.selfplay.consensus import vote
from selfemo.selfplay.records import Group, Sample

GROUP_SIZE = 8
SAMPLES = (64, 1024, 16_384, 65_536)
ROUNDS = 9


def main() -> None:
    """Measure every batch size; rank 0 prints."""
    dist.init_process_group("gloo")
    corpus = load_corpus("everyday", "")
    rewards = Rewards(RewardConfig(), corpus.split("train"), corpus.labels)
    for samples in [int(argument) for argument in sys.argv[1:]] or SAMPLES:
        groups = made_groups(corpus, rewards, samples)
        ways: tuple[Deal, Deal] = (one_by_one, over_group(None))
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            scored = []
            for way, spent in zip(ways, seconds, strict=True):
                dist.barrier()
                started = time.process_time()
                scored.append(rewards.score_groups(groups, way))
                spent.append(time.process_time() - started)
        alike_us, shares_us = (median(spent) / (len(groups) * GROUP_SIZE) * 1e6 for spent in seconds)
        if dist.get_rank() == 0:
            where = f"{len(groups) * GROUP_SIZE} samples, {dist.get_world_size()} ranks"
            same = "same rewards" if scored[0] == scored[1] else "REWARDS DIFFER"
            print(
                f"{where}: alike {alike_us:.2f} us, in shares {shares_us:.2f} us, ratio "
                f"{shares_us / alike_us:.2f}, {same}",
                flush=True,
            )
    dist.destroy_process_group()


def made_groups(corpus: Corpus, rewards: Rewards, samples: int) -> list[Group]:
    """Make recognizer groups: new last turns, and answers that mostly agree."""
    draw = random.Random(0)
    texts = [turn.text for conversation in corpus.split("train") for turn in conversation.turns]
    vocabulary = sorted({word for text in texts for word in text.split()})
    return [
        _group(corpus, rewards, vocabulary, draw, episode) for episode in range(max(1, samples // GROUP_SIZE))
    ]


def _group(
    corpus: Corpus,
    rewards: Rewards,
    vocabulary: Sequence[str],
    draw: random.Random,
    episode: int,
) -> Group:
    text = " ".join(draw.choices(vocabulary, k=draw.randint(4, 24)))
    gold = (draw.choice(corpus.labels),)
    readings = [
        Answer(gold if draw.random() < 0.7 else (draw.choice(corpus.labels),)) for _ in range(GROUP_SIZE)
    ]
    drawn = tuple(
        Sample((1, 2, 3), (4, 5), (-0.1, -0.2), index, ", ".join(reading.labels), True, reading)
        for index, reading in enumerate(readings)
    )
    return Group(
        role="recognizer",
        iteration=0,
        episode=episode,
        turn=0,
        source=f"everyday/train/{episode}",
        parent=None,
        context=(Turn("Ann", text),),
        speaker="Ann",
        gold=gold,
        target=None,
        max_tokens=12,
        temperature=1.0,
        samples=drawn,
        consensus=vote(readings, rewards.score),
    )


if __name__ == "__main__":
    main()
