"""Test that episodes do not depend on the order in which requests end, and wait for their own alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.process.dealing import one_by_one
from selfemo.rollout.api import Completion, GenerationRequest
from selfemo.rollout.sessions import CallByCall, complete
from selfemo.selfplay.steps import Steps, ask, run, work
from tests.helpers.scripted import AnyOrder, ScriptedGenerator
from tests.selfplay.test_episode import CONFIG, OPENING, play, respond_or_recognise


def _leaving_out(prompt: str, request: GenerationRequest) -> str:
    """Answer as in test_episode, but name labels in half of the replies, so that some episodes end early."""
    leaks = prompt.startswith("Write") and request.seed % 4 > 1
    return "such joy, sadness and anger" if leaks else respond_or_recognise(prompt, request)


@settings(max_examples=25, deadline=None)
@given(episodes=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_episodes_are_those_of_lock_step_whatever_ends_first(episodes: int, seed: int) -> None:
    config = replace(CONFIG, turns=3, responder_group_size=3)
    openings = [replace(OPENING, index=i) for i in range(episodes)]
    in_lock_step, generator = play(openings, config, _leaving_out)
    scripted = ScriptedGenerator(_leaving_out)
    at_own_pace, _ = play(openings, config, _leaving_out, session=AnyOrder(scripted, seed))
    assert at_own_pace == in_lock_step
    asked = [request for call in generator.calls for request in call]
    assert sorted(map(repr, asked)) == sorted(repr(request) for (request,) in scripted.calls)


class _HoldingBack:
    """A session that ends one request at a time, the newest; that of seed 0 when nothing else is left."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self._requests: list[GenerationRequest] = []

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        self._requests += requests

    def advance(self) -> list[tuple[int, Completion]]:
        open_ = [number for number in range(len(self._requests)) if number not in self.ended]
        if not open_:
            return []
        number = max(open_, key=lambda number: (self._requests[number].seed != 0, number))
        self.ended.append(number)
        return [(number, Completion((self._requests[number].seed,), (0.0,), True))]


def _steps(episode: int, steps: int) -> Steps[list[int]]:
    """Ask for two requests a step, the first of episode 0 with seed 0, and double what comes back."""
    found = []
    for step in range(steps):
        seeds = [10 * episode + step, 100 + episode]
        completions = yield from ask([GenerationRequest((1,), seed, 1, 1.0) for seed in seeds])
        found += yield from work(lambda completion: 2 * completion.token_ids[0], completions)
        assert (yield from ask([])) == []
    return found


def test_a_slow_request_holds_up_its_own_episode_alone() -> None:
    session = _HoldingBack()
    found = run([_steps(episode, 3) for episode in range(3)], session, one_by_one)
    assert found == [
        [value for step in range(3) for value in (2 * (10 * episode + step), 2 * (100 + episode))]
        for episode in range(3)
    ]
    slow = session.ended.index(0)
    assert slow == 1 + 2 * 3 * 2, "both other episodes had ended"


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_session_completes_a_call_in_order(count: int) -> None:
    requests = [GenerationRequest((65,) * i, i, 5, 1.0) for i in range(count)]
    scripted = ScriptedGenerator(lambda prompt, request: str(request.seed))
    expected = scripted.generate(requests)
    assert complete(AnyOrder(scripted, 3), requests) == expected
    assert complete(CallByCall(scripted), requests) == expected
