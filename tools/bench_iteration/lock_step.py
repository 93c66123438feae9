"""Measures a self-play rollout in lock-step and with every episode at its own pace, on one engine.

    python -m tools.bench_iteration.lock_step               # --seeds 32 --turns 2 --group 8 --rounds 5

Both play the same openings in turns, and must return the same episodes. The model is untrained, so lengths
are drawn: the planner's log-normal, with one completion in a hundred that runs on to the cap
(selfemo/planning/workload.py). What it generates is put into words that can be read, so that episodes go on.
Idle share: 1 - sequences that decode, on average over the engine's steps, over the most that decoded at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bench_iteration.setting import build_trainer

if TYPE_CHECKING:
    from selfemo.rollout.api import Completion, GenerationRequest, Session
    from selfemo.selfplay.records import Episode
    from selfemo.trainer import Trainer

MODEL = Path(__file__).resolve().parents[2] / "examples" / "configs" / "smoke_cpu.yaml"
MEAN_SHARE = 0.2
"""Mean length of a completion as a share of its cap."""


@dataclass
class DrawnLengths:
    """The trainer's engine, whose completions get drawn lengths and readable words; counts its steps."""

    trainer: Trainer
    lengths: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    replies: tuple[tuple[int, ...], ...]
    decoding: list[int] = field(default_factory=list)
    """Sequences that decode, at every step of the engine."""
    requested: int = 0

    def __post_init__(self) -> None:
        """Listen to the engine's steps."""
        engine: Any = self.trainer.system.engine
        self.max_length: int = engine.max_length
        inner, slots = engine._llm.llm_engine, self.trainer.config.rollout.max_num_seqs
        step: Callable[[], Any] = inner.step

        def counted() -> Any:
            self.decoding.append(min(inner.get_num_unfinished_requests(), slots))
            return step()

        inner.step = counted

    @contextmanager
    def session(self) -> Iterator[Session]:
        """As the engine's."""
        with self.trainer.system.engine.session() as session:
            yield _Session(session, self)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """As the engine's."""
        from selfemo.rollout.sessions import complete

        with self.session() as session:
            return complete(session, requests)


@dataclass
class _Session:
    session: Session
    owner: DrawnLengths
    requests: list[GenerationRequest] = field(default_factory=list)

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        lengths = self.owner.lengths
        self.requests += requests
        self.owner.requested += len(requests)
        drawn = [lengths[zlib.crc32(repr((r.seed, r.prompt_ids)).encode()) % len(lengths)] for r in requests]
        self.session.add([replace(r, max_tokens=n) for r, n in zip(requests, drawn, strict=True)])

    def advance(self) -> list[tuple[int, Completion]]:
        return [(number, self._said(number, completion)) for number, completion in self.session.advance()]

    def _said(self, number: int, completion: Completion) -> Completion:
        answers = self.requests[number].max_tokens == self.owner.trainer.config.selfplay.max_recognizer_tokens
        words = self.owner.answers if answers else self.owner.replies
        ids = words[sum(completion.token_ids) % len(words)]
        return replace(completion, token_ids=ids, finished=True)


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; returns the exit status."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # the trainer's terminal sends file descriptors 1 and 2 to a log
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with tempfile.TemporaryDirectory(prefix="selfemo-bench-") as scratch:
        seconds, idle = _measured(options, Path(scratch) / "run", terminal.write)
    print(f"median of {options.rounds} rounds", file=terminal)
    for name, values in seconds.items():
        print(f"{name:12} {statistics.median(values):7.2f} s  idle {idle[name]:.3f}", file=terminal)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"lock-step takes {statistics.median(ratios):.2f} times as long ({spread})", file=terminal)
    return 0


def _measured(
    options: argparse.Namespace, run_dir: Path, say: Callable[[str], Any]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of every round by way, and each way's idle share."""
    from selfemo.config.load import load_config
    from selfemo.planning.workload import Lengths
    from selfemo.process.engine_ranks import EngineRanks
    from selfemo.process.stop import StopSignals
    from selfemo.run.episodes import EpisodesByEngine
    from selfemo.run.stoppable import StopRequest

    sizes = {
        "output_dir": run_dir,
        "parallel.tensor": 1,
        "rollout.max_num_seqs": options.slots,
        "selfplay.seeds_per_iteration": options.seeds,
        "selfplay.turns": options.turns,
        "selfplay.recognizer_group_size": options.group,
        "selfplay.responder_group_size": options.group,
        "selfplay.max_answer_tokens": options.tokens - 1,  # the caps tell the roles apart
        "selfplay.max_utterance_tokens": options.tokens,
    }
    trainer = build_trainer(load_config(str(MODEL), [f"{name}={value}" for name, value in sizes.items()]))
    corpus, encode = trainer.system.corpus, trainer.system.encoder.encode_completion
    turns = [turn for conversation in corpus.split("train") for turn in conversation.turns]
    engine = DrawnLengths(
        trainer,
        Lengths(0.0, MEAN_SHARE * options.tokens, options.tokens - 1).completions(4096),
        tuple(encode(label) for label in corpus.labels),
        tuple(encode(turn.text) for turn in turns),
    )
    stop = StopRequest(trainer.system.world.device.torch_device, StopSignals())
    ways = {
        name: EpisodesByEngine(trainer.parts.selfplay, engine, EngineRanks.join(1), stop, lock_step)  # type: ignore[arg-type]
        for name, lock_step in (("lock-step", True), ("own pace", False))
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    decoded: dict[str, list[int]] = {name: [] for name in ways}
    for number in range(-1, options.rounds):  # the first round warms up
        openings = trainer.parts.opening_pool.draw(number + 1)
        played: list[list[Episode]] = []
        for name in sorted(ways, reverse=bool(number % 2)):
            engine.decoding.clear()
            engine.requested = 0
            started = time.perf_counter()
            episodes = ways[name].play(openings, number + 1)
            taken = time.perf_counter() - started
            counts = f"{len(engine.decoding)} steps, {engine.requested} requests"
            say(f"round {number}, {name}: {taken:.2f} s, {counts}\n")
            played.append(episodes)
            if number >= 0:
                seconds[name].append(taken)
                decoded[name] += engine.decoding
        if played[0] != played[1]:
            raise RuntimeError(f"round {number}: the two ways returned different episodes")
    most = max(max(steps) for steps in decoded.values())
    idle = {name: 1 - statistics.fmean(steps) / most for name, steps in decoded.items()}
    return seconds, idle


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, told in (
        ("seeds", 32, "episodes of a rollout"),
        ("turns", 2, "turns of an episode"),
        ("group", 8, "samples per group, of both roles"),
        ("tokens", 128, "completion cap"),
        ("slots", 128, "rollout.max_num_seqs"),
        ("rounds", 5, "measured rounds"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{told} (default {default})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
