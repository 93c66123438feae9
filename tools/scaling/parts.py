"""Measures the cost of the project's own parts per sample.

The parts are planning, self-play around the engine, rewards, flywheel, dealing and packing. Groups are
fed in batches, as iterations feed them, and dropped again, because the study looks for cost that grows
with the number of samples seen before. Seconds are the processor's, not the clock's, so that a busy
machine does not show.
"""

from __future__ import annotations

import json
import pickle
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from selfemo.config.checks import planned_architecture
from selfemo.config.layout import Layout
from selfemo.config.schema import FlywheelConfig, RewardConfig, RunConfig, SelfPlayConfig
from selfemo.corpora.conversation import Corpus, Turn
from selfemo.corpora.registry import load_corpus
from selfemo.emotions.answer import Answer
from selfemo.grpo.samples import TrainingSample
from selfemo.planning.hardware import gpu_by_name
from selfemo.planning.plan import make_plan
from selfemo.planning.workload import workload_of
from selfemo.rewards.scoring import Rewards
from selfemo.rollout.api import Completion, GenerationRequest
from selfemo.selfplay.consensus import vote
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.records import Episode, Group, Sample
from selfemo.selfplay.transitions import TransitionPrior

GROUP_SIZE = 8
BATCH_GROUPS = 512
MICROBATCH_TOKENS = 16_384
DATA_PARALLEL = 8
REPEATED = ("self-play of all", "rewards of all", "advantage", "flywheel", "deal")
"""Parts that every rank computes alike over the whole batch (selfemo.trainer)."""
SHARED = ("self-play", "reward")
"""Parts that ranks share out, and pack for one another. Packing micro-batches is shared out too, but
the planner counts it as training.
"""
OPENINGS = 64
"""Openings of one iteration of self-play."""
LINEAR_FACTOR = 3.0
"""Largest ratio of the cost of a sample in the largest study to that in a tenth of it before a part
counts as growing. Sorting in dealing and overflowing caches stay below it; quadratic cost would be 10.
"""


@dataclass(frozen=True)
class PartCost:
    """Processor time of one part for a number of samples."""

    part: str
    samples: int
    seconds: float

    @property
    def per_sample_us(self) -> float:
        return self.seconds / self.samples * 1e6


@dataclass(frozen=True)
class OwnCost:
    """Cost of the project's own parts on a rank, per sample of the whole batch."""

    repeated_us: float = 0.0
    """Microseconds on every rank, however many ranks there are."""
    shared_us: float = 0.0
    """Microseconds in all, shared out over the ranks."""

    def seconds(self, samples: int, ranks: int) -> float:
        """Return the seconds that a batch takes of each of `ranks` ranks."""
        return samples * (self.repeated_us + self.shared_us / ranks) / 1e6


def measure_parts(
    sample_counts: Sequence[int], kept: Path, say: Callable[[str], None] = print
) -> list[PartCost]:
    """Measure every part at every count.

    Results are kept in the JSON file `kept` and not measured again.
    """
    corpus = load_corpus("everyday", "")
    found = [PartCost(**cost) for cost in json.loads(kept.read_text())] if kept.exists() else []
    for samples in sample_counts:
        for part, measure in PARTS.items():
            if not any((cost.part, cost.samples) == (part, samples) for cost in found):
                found.append(PartCost(part, samples, measure(corpus, samples)))
                say(
                    f"{part}: {samples} samples in {found[-1].seconds:.1f} s of processor time, "
                    f"{found[-1].per_sample_us:.1f} us each"
                )
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps([asdict(cost) for cost in found], indent=1) + "\n")
    return sorted(
        (cost for cost in found if cost.samples in sample_counts),
        key=lambda cost: (list(PARTS).index(cost.part), cost.samples),
    )


def growth(costs: Sequence[PartCost]) -> dict[str, float]:
    """Return, by part, the cost per sample at the largest count over that at a tenth of it.

    1 is linear, 10 is quadratic.
    """
    found = {}
    for part in dict.fromkeys(cost.part for cost in costs):
        by_count = {cost.samples: cost.per_sample_us for cost in costs if cost.part == part}
        largest = max(by_count)
        if largest // 10 in by_count:
            found[part] = by_count[largest] / by_count[largest // 10]
    return found


def own_cost(costs: Sequence[PartCost]) -> OwnCost:
    """Add up the parts' costs at each one's largest count; a part that was not measured costs nothing."""
    largest = {cost.part: cost.per_sample_us for cost in sorted(costs, key=lambda cost: cost.samples)}
    repeated, shared = (sum(largest.get(part, 0.0) for part in parts) for parts in (REPEATED, SHARED))
    return OwnCost(repeated, shared)


def _planning(_: Corpus, samples: int) -> float:
    openings = max(1, samples // (4 * GROUP_SIZE))
    config = RunConfig(selfplay=SelfPlayConfig(seeds_per_iteration=openings))
    layout, gpu = Layout(8, 8, tensor=2, distributed_optimizer=True), gpu_by_name("h100-80g")
    started = time.process_time()
    make_plan(
        config, planned_architecture(replace(config.model, path="qwen3-8b")), layout, workload_of(config), gpu
    )
    return time.process_time() - started


def _dealing(_: Corpus, samples: int) -> float:
    from selfemo.megatron.packing import balance_by_tokens

    lengths = [sample.length_tokens for sample in _training_samples(samples)]
    started = time.process_time()
    balance_by_tokens(lengths, MICROBATCH_TOKENS, DATA_PARALLEL)
    return time.process_time() - started


def _packing(_: Corpus, samples: int) -> float:
    import torch

    from selfemo.megatron.packing import balance_by_tokens, pack

    batch = _training_samples(samples)
    bins = balance_by_tokens([sample.length_tokens for sample in batch], MICROBATCH_TOKENS, DATA_PARALLEL)
    started = time.process_time()
    for indices in bins:
        pack(batch, indices, 1, torch.device("cpu"))
    return time.process_time() - started


class _Engine:
    """Stands for an engine: it returns completions of the usual lengths, and adds up the time this takes."""

    def __init__(
        self, answers: Sequence[tuple[int, ...]], utterances: Sequence[tuple[int, ...]], answer_tokens: int
    ) -> None:
        self._draw, self._answers, self._utterances, self._answer_tokens = (
            random.Random(0),
            answers,
            utterances,
            answer_tokens,
        )
        self.engine_s = 0.0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Return one completion per request."""
        started = time.process_time()
        pools = [
            self._answers if request.max_tokens == self._answer_tokens else self._utterances
            for request in requests
        ]
        completions = [Completion(ids, (-0.1,) * len(ids), True) for ids in map(self._draw.choice, pools)]
        self.engine_s += time.process_time() - started
        return completions


def _self_play(corpus: Corpus, samples: int) -> tuple[float, float]:
    """Return the seconds of playing episodes, which engines share out, and of unpacking those of all."""
    from selfemo.selfplay.tokenizer_texts import tokenizer_texts
    from selfemo.tokens.encoder import ChatEncoder
    from selfemo.tokens.training import save_tokenizer, train_tokenizer

    config, train = RunConfig(), corpus.split("train")
    play = replace(config.selfplay, seeds_per_iteration=OPENINGS)
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(
            train_tokenizer(tokenizer_texts(corpus), config.model.vocab_size),
            Path(directory),
            config.model.max_length,
        )
        encoder = ChatEncoder(directory)
    texts = [turn.text for conversation in train for turn in conversation.turns]
    answers, utterances = (
        [encoder.encode_completion(text) for text in choices] for choices in (corpus.labels, texts)
    )
    engine = _Engine(answers, utterances, play.max_recognizer_tokens)
    prompts = PromptBuilder(
        encoder, corpus.labels, config.corpus.history_turns, config.corpus.max_turn_tokens
    )
    score = Rewards(config.reward, train, corpus.labels).score
    selfplay = SelfPlay(engine, prompts, score, TransitionPrior.estimate(train), play, config.seed)
    pool = OpeningPool(corpus, play, config.seed, config.corpus.history_turns)
    played, iteration, own_s, all_s = 0, 0, 0.0, 0.0
    while played < samples:
        openings = pool.draw(iteration, [])
        started = time.process_time()
        sent = pickle.dumps(selfplay.play(openings, iteration))
        packed = time.process_time()
        episodes: list[Episode] = pickle.loads(sent)
        own_s, all_s = own_s + packed - started, all_s + time.process_time() - packed
        played += sum(len(group.samples) for episode in episodes for group in episode.groups)
        iteration += 1
    of_asked = samples / played
    return (own_s - engine.engine_s) * of_asked, all_s * of_asked


def _rewarding(corpus: Corpus, samples: int) -> float:
    """Return the seconds of scoring, and of packing the figures for the other ranks."""
    rewards = Rewards(RewardConfig(), corpus.split("train"), corpus.labels)
    seconds = 0.0
    for groups in made_groups(corpus, rewards, samples):
        started = time.process_time()
        pickle.dumps([rewards.figures(group) for group in groups])
        seconds += time.process_time() - started
    return seconds


def _receiving(corpus: Corpus, samples: int) -> float:
    """Return the seconds of unpacking everybody's figures and putting them to their groups.

    Moving the bytes, some 40 a sample, is not counted.
    """
    rewards = Rewards(RewardConfig(), corpus.split("train"), corpus.labels)
    seconds = 0.0
    for groups in made_groups(corpus, rewards, samples):
        sent = pickle.dumps([rewards.figures(group) for group in groups])
        started = time.process_time()
        rewards.score_groups(groups, lambda _, __, sent=sent: pickle.loads(sent))
        seconds += time.process_time() - started
    return seconds


def _weighing(corpus: Corpus, samples: int) -> float:
    """Return the seconds of checking rewards, and of turning the whole batch into training samples.

    Advantages are computed on the way.
    """
    from selfemo.grpo.advantages import training_samples, with_advantages
    from selfemo.run.guards import check_rewards

    config = RunConfig()
    rewards = Rewards(config.reward, corpus.split("train"), corpus.labels)
    seconds = 0.0
    for groups in made_groups(corpus, rewards, samples):
        scored = rewards.score_groups(groups)
        started = time.process_time()
        check_rewards(scored, config.reward)
        training_samples(with_advantages(scored, config.algorithm))
        seconds += time.process_time() - started
    return seconds


def _collecting(corpus: Corpus, samples: int) -> float:
    from selfemo.flywheel.flywheel import Flywheel

    rewards = Rewards(RewardConfig(), corpus.split("train"), corpus.labels)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as directory:
        flywheel = Flywheel(
            FlywheelConfig(), corpus, rewards, Path(directory) / "flywheel.sqlite", is_writer=True
        )
        for version, groups in enumerate(made_groups(corpus, rewards, samples)):
            scored = rewards.score_groups(groups)
            started = time.process_time()
            flywheel.offer(scored, version)
            seconds += time.process_time() - started
        flywheel.close()
    return seconds


PARTS: dict[str, Callable[[Corpus, int], float]] = {
    "plan": _planning,
    "self-play": lambda corpus, samples: _self_play(corpus, samples)[0],
    "self-play of all": lambda corpus, samples: _self_play(corpus, samples)[1],
    "reward": _rewarding,
    "rewards of all": _receiving,
    "advantage": _weighing,
    "flywheel": _collecting,
    "deal": _dealing,
    "pack": _packing,
}


def _training_samples(count: int) -> list[TrainingSample]:
    draw = random.Random(0)
    pieces = [tuple(range(length)) for length in range(1, 160)]
    return [TrainingSample(draw.choice(pieces[40:]), draw.choice(pieces[:16])) for _ in range(count)]


def made_groups(corpus: Corpus, rewards: Rewards, samples: int) -> Iterator[list[Group]]:
    """Yield batches of recognizer groups.

    They are real dialogues with a new last turn each, and answers that mostly agree.
    """
    draw = random.Random(0)
    texts = [turn.text for conversation in corpus.split("train") for turn in conversation.turns]
    vocabulary = sorted({word for text in texts for word in text.split()})
    left = max(1, samples // GROUP_SIZE)
    for iteration in range(-(-left // BATCH_GROUPS)):
        count = min(BATCH_GROUPS, left - iteration * BATCH_GROUPS)
        yield [_group(corpus, rewards, vocabulary, draw, iteration, episode) for episode in range(count)]


def _group(
    corpus: Corpus,
    rewards: Rewards,
    vocabulary: Sequence[str],
    draw: random.Random,
    iteration: int,
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
        iteration=iteration,
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
