"""Turns a session into one call for many requests, and a generator's calls into a session."""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.rollout.api import Completion, GenerationRequest, Generator, Session


def complete(session: Session, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """Complete requests in a session that has had none before; completions in order."""
    session.add(requests)
    found: dict[int, Completion] = {}
    while ended := session.advance():
        found.update(ended)
    return [found[number] for number in range(len(requests))]


class CallByCall:
    """A session in lock-step: requests wait until all that came before them have ended.

    Implements rollout.api.Session over any generator. What was added since the last call is the next one.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._waiting: list[GenerationRequest] = []
        self._completed = 0

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """Keep requests for the next call."""
        self._waiting += requests

    def advance(self) -> list[tuple[int, Completion]]:
        """Complete all requests that wait, in one generator call; no call if there is none."""
        requests, first = self._waiting, self._completed
        self._waiting, self._completed = [], first + len(requests)
        return list(enumerate(self._generator.generate(requests), first)) if requests else []
