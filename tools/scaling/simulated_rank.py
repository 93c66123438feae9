"""Runs the data plane of one rank in a world of many, and prints what it costs.

    python -m tools.scaling.simulated_rank GPUS RANK TOKENIZER_DIR      # as tools.scaling calls it

An engine per GPU, a data-parallel rank each, 32 episodes of 3 turns: 1,152 samples. The code is that of the
trainer: openings, self-play, rewards, advantages, flywheel, training samples, dealing and figures. Two things
stand in: an engine that answers at once with texts of the corpus, and what other ranks would send
(tools/scaling/simulated_world.py, simulated_peers.py). Seconds are the processor's, medians over iterations
after the first. A fixed loop is timed beside them: other work on the machine makes a processor's second hold
more or less.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from selfemo.config.layout import Layout
from selfemo.config.schema import RunConfig
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.registry import load_corpus
from selfemo.rollout.api import Completion, GenerationRequest
from selfemo.rollout.sessions import CallByCall
from tools.scaling.simulated_world import Meter, enter

ITERATIONS = 8
LOOPS = 4000
OPENINGS = 32
"""Per GPU."""
TURNS = 3
CPU = torch.device("cpu")


def config_of(gpus: int) -> RunConfig:
    """Configure 1,152 samples per GPU: 3 turns of 8 readings and 4 replies."""
    config = RunConfig()
    play = replace(
        config.selfplay,
        seeds_per_iteration=OPENINGS * gpus,
        turns=TURNS,
        recognizer_group_size=8,
        responder_group_size=4,
    )
    train = replace(config.train, share_prompts=True, max_tokens_per_microbatch=16_384)
    return replace(config, selfplay=play, train=train, corpus=replace(config.corpus, history_turns=8))


class _Engine:
    """Answers at once, with texts of the corpus."""

    max_length = 1 << 20

    def __init__(self, corpus: Corpus, encoder: Any, answer_tokens: int, meter: Meter) -> None:
        texts = [turn.text for conversation in corpus.split("train") for turn in conversation.turns]
        self._answers, self._utterances = (
            [encoder.encode_completion(text) for text in choices] for choices in (corpus.labels, texts)
        )
        self._draw, self._answer_tokens, self._meter = random.Random(0), answer_tokens, meter

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Return one completion per request."""
        with self._meter.foreign():
            return [self._complete(request.max_tokens == self._answer_tokens) for request in requests]

    @contextmanager
    def session(self) -> Iterator[CallByCall]:
        """Answer the requests that were added since the last call."""
        yield CallByCall(self)

    def _complete(self, is_answer: bool) -> Completion:
        ids = self._draw.choice(self._answers if is_answer else self._utterances)
        return Completion(ids, (-0.1,) * len(ids), True)


class SimulatedRank:
    """The parts of one rank, wired as the trainer wires them."""

    def __init__(self, gpus: int, rank: int, meter: Meter, tokenizer: Path, directory: Path) -> None:
        from selfemo.flywheel.flywheel import Flywheel
        from selfemo.megatron.parallel import RankLayout
        from selfemo.megatron.sample_dealer import SampleDealer
        from selfemo.process.engine_ranks import EngineRanks
        from selfemo.process.stop import StopSignals
        from selfemo.rewards.scoring import Rewards
        from selfemo.run.episodes import EpisodesByEngine
        from selfemo.run.stoppable import StopRequest
        from selfemo.selfplay.episode import SelfPlay
        from selfemo.selfplay.openings import OpeningPool
        from selfemo.selfplay.prompts import PromptBuilder
        from selfemo.selfplay.tokenizer_texts import tokenizer_texts
        from selfemo.selfplay.transitions import TransitionPrior
        from selfemo.tokens.encoder import ChatEncoder
        from selfemo.tokens.training import save_tokenizer, train_tokenizer
        from tools.scaling.simulated_peers import SimulatedPeers

        self.config = config = config_of(gpus)
        corpus, ranks = load_corpus("everyday", ""), EngineRanks(gpus, rank)
        train, shown = corpus.split("train"), config.corpus
        if not (tokenizer / "tokenizer.json").is_file():
            tokenizer.mkdir(parents=True, exist_ok=True)
            trained = train_tokenizer(tokenizer_texts(corpus), config.model.vocab_size)
            save_tokenizer(trained, tokenizer, config.model.max_length)
        encoder = ChatEncoder(tokenizer)
        prompts = PromptBuilder(encoder, corpus.labels, shown.history_turns, shown.max_turn_tokens)
        self.rewards = Rewards(config.reward, train, corpus.labels)
        engine: Any = _Engine(corpus, encoder, config.selfplay.max_recognizer_tokens, meter)
        transitions = TransitionPrior.estimate(train)
        play = SelfPlay(engine, prompts, self.rewards.score, transitions, config.selfplay, config.seed)
        self.episodes = EpisodesByEngine(play, engine, ranks, StopRequest(CPU, StopSignals()))
        self.pool = OpeningPool(corpus, config.selfplay, config.seed, shown.history_turns)
        layout = RankLayout(Layout(1, gpus), rank, 0, 0, 0, data_rank=rank)
        self.dealer = SampleDealer(
            config.train,
            config.algorithm.updates_per_rollout,
            config.selfplay.seeds_per_iteration,
            layout,
            ranks,
            CPU,
        )
        self.dealer._ranks_of_part = [[part] for part in range(gpus)]  # asked of all ranks, once in a run
        self.peers = SimulatedPeers(meter, corpus, config.flywheel.candidates_per_iteration)
        self.flywheel = Flywheel(
            config.flywheel, corpus, self.rewards, directory / "flywheel.sqlite", True, self.peers
        )
        self._meter, self.seconds = meter, {}  # type: ignore[var-annotated]

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        started = self._meter.own_s()
        yield
        self.seconds.setdefault(name, []).append(self._meter.own_s() - started)

    def iterate(self, iteration: int) -> tuple[int, int]:
        """Run the data plane of one iteration; returns this rank's samples and groups."""
        from selfemo.grpo.advantages import training_samples
        from selfemo.process.reduction import OverRanks
        from selfemo.run.iteration import iteration_figures

        config = self.config
        with self._part("openings"):
            numbers = self.episodes.of_engine(range(config.selfplay.seeds_per_iteration))
            kept = self.flywheel.kept_dialogues(before_iteration=iteration)
            openings = self.pool.draw(iteration, kept, None, numbers)
        with self._part("self-play"):
            episodes = self.episodes.play(openings, iteration)
        with self._part("rewards and advantages"):
            scored = self.episodes.score(episodes, self.rewards, config)
        with self._part("flywheel"):
            self.flywheel.offer(scored.own_groups, iteration)
        with self._part("training samples"):
            samples = training_samples(scored.groups)
        with self._part("dealing"):
            self.dealer.deal(samples, scored.own_numbers)
        with self._part("figures"):
            iteration_figures(scored.own_groups, OverRanks(CPU))
            self.flywheel.outcomes(iteration)
        return len(samples), len(scored.own_groups)


def main() -> None:
    """Print the costs as one line of JSON."""
    gpus, rank = map(int, sys.argv[1:3])
    torch.set_num_threads(1)
    meter = Meter()
    enter(gpus, rank, meter)
    with tempfile.TemporaryDirectory() as directory:
        simulated = SimulatedRank(gpus, rank, meter, Path(sys.argv[3]), Path(directory))
        simulated.iterate(0)
        simulated.peers.is_warming = False
        simulated.seconds.clear()
        before = _memory_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        meter.received_bytes = 0
        made, loops = [], [loop_s()]
        for iteration in range(1, ITERATIONS):
            made.append(simulated.iterate(iteration))
            loops.append(loop_s())
        samples, groups = (sum(column) // len(made) for column in zip(*made, strict=True))
        found = {
            "samples": samples,
            "groups": groups,
            "loop_s": median(loops),
            "parts": {part: median(spent) for part, spent in simulated.seconds.items()},
            "received_bytes": meter.received_bytes // len(made),
            "peak_bytes": _memory_bytes("VmHWM") - before,
        }
    print(json.dumps(found))


def loop_s() -> float:
    """Time a fixed loop of the kind of work that the parts are: strings, tuples, dictionaries."""
    started = time.process_time()
    for number in range(LOOPS):
        words = f"{number} and what else a line of dialogue may hold".split()
        rows = [(word, len(word), {"place": place, "word": word}) for place, word in enumerate(words)]
        sorted(rows, key=lambda row: (row[1], row[0]))
    return time.process_time() - started


def _memory_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
