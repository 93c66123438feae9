"""Compares scoring every reward on every rank with scoring shares and gathering them.

    torchrun --standalone --nproc-per-node 2 -m tools.bench_dealing [SAMPLES ...]

Measures processor time per rank and sample, both ways in turns. Prints medians of rank 0, the ratio
shares / alike, and whether both give the same rewards.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch.distributed as dist

from selfemo.config.schema import RewardConfig
from selfemo.corpora.registry import load_corpus
from selfemo.process.dealing import Deal, map_over_ranks, one_by_one
from selfemo.rewards.scoring import Rewards
from tools.scaling.parts import GROUP_SIZE, made_groups

SAMPLES = (64, 1024, 16_384, 65_536)
ROUNDS = 9


def main() -> None:
    """Measure every batch size; rank 0 prints."""
    dist.init_process_group("gloo")
    corpus = load_corpus("everyday", "")
    rewards = Rewards(RewardConfig(), corpus.split("train"), corpus.labels)
    for samples in [int(argument) for argument in sys.argv[1:]] or SAMPLES:
        groups = [group for batch in made_groups(corpus, rewards, samples) for group in batch]
        ways: tuple[Deal, Deal] = (one_by_one, map_over_ranks)
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


if __name__ == "__main__":
    main()
