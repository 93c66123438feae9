"""Test episodes played by engine, over gloo ranks: they are those of one rank, whatever the engines' size.

Requests end in a random order, and engines are at different places of it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from selfemo.common.errors import UserError
from selfemo.config.schema import RewardConfig
from selfemo.process.engine_ranks import EngineRanks
from selfemo.process.exchange import rows_of_ranks
from selfemo.process.stop import StopSignals
from selfemo.rewards.scoring import Rewards
from selfemo.rollout.api import Completion, GenerationRequest, Session
from selfemo.run.episodes import EpisodesByEngine
from selfemo.run.stoppable import Stopped, StopRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.records import Episode, Opening
from selfemo.selfplay.transitions import TransitionPrior
from tests.flywheel.test_flywheel import CONFIG, CORPUS, TRAIN, speak
from tests.helpers.scripted import LABELS, AnyOrder, CharEncoder, ScriptedGenerator

CPU = torch.device("cpu")
ITERATION = 2
OPENINGS = OpeningPool(CORPUS, CONFIG, 5, 3).draw(ITERATION)


def _speak(prompt: str, request: GenerationRequest) -> str:
    """Answer as `speak`, but name the label in two replies of three, so that some episodes end early."""
    return "what a joy it is" if prompt.startswith("Write") and request.seed % 3 else speak(prompt, request)


class _Engine(ScriptedGenerator):
    """An engine that answers from a script, and raises at its call number `fails_at`."""

    def __init__(self, fails_at: int = -1, max_length: int = 10_000) -> None:
        super().__init__(_speak)
        self.fails_at, self.max_length = fails_at, max_length

    @contextmanager
    def session(self) -> Iterator[Session]:
        yield AnyOrder(self, seed=8)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        if len(self.calls) == self.fails_at:
            raise RuntimeError(f"engine of rank {dist.get_rank()} is broken")
        return super().generate(requests)


def _self_play() -> SelfPlay:
    score = Rewards(RewardConfig(), TRAIN, LABELS).score
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    return SelfPlay(ScriptedGenerator(_speak), prompts, score, TransitionPrior.estimate(TRAIN), CONFIG, 5)


def _by_engine(engine: _Engine, tensor_parallel: int, signals: StopSignals | None = None) -> EpisodesByEngine:
    stop = StopRequest(CPU, signals or StopSignals())
    ranks = EngineRanks.join(tensor_parallel)
    return EpisodesByEngine(_self_play(), engine, ranks, stop)  # type: ignore[arg-type]


def _played(tensor_parallel: int, openings: list[Opening]) -> tuple[list[Episode], list[list[int]]]:
    """Return the episodes, and the seeds that this rank's engine was asked for, call by call."""
    engine = _Engine()
    by_engine = _by_engine(engine, tensor_parallel)
    found = by_engine.play(by_engine.of_engine(openings), ITERATION)
    return found, [[request.seed for request in call] for call in engine.calls]


@pytest.mark.parametrize(("ranks", "tensor_parallel"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_episodes_are_those_of_one_rank(distributed, ranks: int, tensor_parallel: int) -> None:
    alone = _self_play().play(OPENINGS, ITERATION)
    assert len({len(episode.groups) for episode in alone}) > 1, "some end early, so engines have idle turns"
    found = distributed(ranks, _played, tensor_parallel, OPENINGS)
    assert [e for episodes, _ in found[::tensor_parallel] for e in episodes] == alone
    asked = [seeds for _, seeds in found]
    for first in range(0, ranks, tensor_parallel):
        assert [found[first + part][0] for part in range(tensor_parallel)] == [
            found[first][0]
        ] * tensor_parallel
        assert asked[first : first + tensor_parallel] == [asked[first]] * tensor_parallel
    engines = asked[::tensor_parallel]
    sampled = [{seed for call in calls for seed in call if seed} for calls in engines]
    assert sum(map(len, sampled)) == len(set().union(*sampled)), "each episode is asked of one engine"
    assert all(sampled)


def test_engines_without_an_episode_keep_step(distributed) -> None:
    alone = _self_play().play(OPENINGS[:1], ITERATION)
    found = distributed(4, _played, 1, OPENINGS[:1])
    assert [e for episodes, _ in found for e in episodes] == alone
    assert sum(any(calls) for _, calls in found) == 1
    assert distributed(2, _played, 1, []) == [([], [])] * 2


def _failing(tensor_parallel: int, fails_at: dict[int, int], max_length: list[int]) -> tuple[str, int]:
    """Return what the ranks raise, and the number of episodes that they play after it."""
    rank = dist.get_rank()
    by_engine = _by_engine(_Engine(fails_at.get(rank, -1), max_length[rank]), tensor_parallel)
    try:
        by_engine.play(by_engine.of_engine(OPENINGS), ITERATION)
    except (RuntimeError, UserError) as error:
        by_engine = _by_engine(_Engine(), tensor_parallel)
        again = by_engine.play(by_engine.of_engine(OPENINGS), ITERATION)
        return str(error), sum(row[0] for row in rows_of_ranks([len(again)], CPU)) // tensor_parallel
    return "", 0


@pytest.mark.parametrize("call", [0, 1, 3 * CONFIG.turns - 1])
def test_one_engines_failure_ends_all_ranks_in_step(distributed, call: int) -> None:
    both = {2: call, 3: call}
    told = [("engine of rank 2 is broken", len(OPENINGS))] * 4
    assert distributed(4, _failing, 1, {2: call, 3: 0} if call == 0 else {2: call}, [10_000] * 4) == told
    assert distributed(4, _failing, 2, both, [10_000] * 4) == told


def test_a_prompt_too_long_for_one_engine_is_told_by_all(distributed) -> None:
    told = distributed(2, _failing, 1, {}, [10_000, 60])
    assert told == [told[0]] * 2
    assert "model.max_length=60 holds fewer" in told[0][0]


class _Meeting(_Engine):
    """An engine of two: rank 1's first call waits until rank 0 is at its call number `at`, and then acts."""

    def __init__(self, met: Path, at: int, signals: StopSignals) -> None:
        super().__init__()
        self._met, self._at, self._signals = met, at, signals

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        if dist.get_rank() == 0 and len(self.calls) == self._at:
            self._met.touch()
        elif dist.get_rank() == 1 and not self.calls:
            until = time.monotonic() + 60
            while not self._met.exists() and time.monotonic() < until:
                time.sleep(0.01)
            assert self._met.exists(), "rank 0's engine waits for this one"
            self._signals.asked = int(signal.SIGUSR1)
        return super().generate(requests)


def _met(met: str, at: int) -> tuple[str, int]:
    """Return the signal that stopped this rank, and the calls its engine had by then."""
    signals = StopSignals()
    engine = _Meeting(Path(met), at, signals)
    try:
        by_engine = _by_engine(engine, 1, signals)
        by_engine.play(by_engine.of_engine(OPENINGS), ITERATION)
    except Stopped as stopped:
        return str(stopped), len(engine.calls)
    return "", 0


def test_engines_do_not_wait_for_one_another_and_a_signal_reaches_both(distributed, tmp_path: Path) -> None:
    mine = _self_play()
    mine.play(OPENINGS[: len(OPENINGS) // 2], ITERATION)
    last = sum(map(len, mine.generator.calls)) - 1  # type: ignore[attr-defined]
    found = distributed(2, _met, str(tmp_path / "met"), last)
    assert [stopped for stopped, _ in found] == ["SIGUSR1"] * 2
    assert found[0][1] == last + 1
    assert 1 <= found[1][1] < last, "it stopped on its way"


def _lock_step(lock_step: bool) -> tuple[list[Episode], int]:
    engine, stop = _Engine(), StopRequest(CPU, StopSignals())
    by_engine = EpisodesByEngine(_self_play(), engine, EngineRanks.join(1), stop, lock_step)  # type: ignore[arg-type]
    return by_engine.play(OPENINGS, ITERATION), max(map(len, engine.calls))


def test_in_lock_step_a_call_holds_all_episodes_and_their_results_are_the_same(distributed) -> None:
    (episodes, most), (own_pace, alone) = (
        distributed(1, _lock_step, True)[0],
        distributed(1, _lock_step, False)[0],
    )
    assert episodes == own_pace
    assert (most, alone) == (len(OPENINGS) * CONFIG.recognizer_group_size, 1)


def _stopped(asked_rank: int) -> str:
    signals = StopSignals()
    signals.asked = int(signal.SIGTERM) if dist.get_rank() == asked_rank else 0
    try:
        by_engine = _by_engine(_Engine(), 1, signals)
        by_engine.play(by_engine.of_engine(OPENINGS), ITERATION)
    except Stopped as stopped:
        return str(stopped)
    return ""


def test_a_request_to_stop_stops_all_engines(distributed) -> None:
    assert distributed(2, _stopped, 1) == ["SIGTERM"] * 2
