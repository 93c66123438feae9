"""Runs many episodes on one engine: each goes on as soon as its own requests have ended.

An episode is a Python generator, `Steps`. It yields the requests of its next step, and receives their
completions; or it yields work on items, and receives the results. The driver resumes every episode that has
what it asked for, puts equal work of several of them together, and adds their requests to a session in which
the requests of other episodes may still generate. In a session that works call by call
(rollout/sessions.py) all requests end at once, and the same driver plays in lock-step.

The order of everything follows from the order in which requests end. Ranks that share an engine see the same
one, so that `deal`, which is collective, is called with the same work in the same order on each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfemo.process.dealing import Deal
from selfemo.rollout.api import Completion, GenerationRequest, Session


@dataclass(frozen=True)
class Work:
    """A function to apply to each of some items."""

    compute: Callable[[Any], Any]
    items: Sequence[Any]


@dataclass(frozen=True)
class Asked:
    """Requests to complete; at least one."""

    requests: Sequence[GenerationRequest]


type Steps[R] = Generator[Work | Asked, list[Any], R]
"""Returns R at its end."""


def work[T, R](compute: Callable[[T], R], items: Sequence[T]) -> Steps[list[R]]:
    """Have `compute` applied to every item; the ranks of an engine share the items. Results in order."""
    results: list[R] = (yield Work(compute, items)) if items else []
    return results


def ask(requests: Sequence[GenerationRequest]) -> Steps[list[Completion]]:
    """Have requests completed; completions in order."""
    completions: list[Completion] = (yield Asked(requests)) if requests else []
    return completions


def run[R](episodes: Sequence[Steps[R]], session: Session, deal: Deal) -> list[R]:
    """Run episodes to their ends, and return what they return, in their order.

    Args:
        session: has had no request before.
        deal: applies the episodes' work.
    """
    results: dict[int, R] = {}
    waiting = _Waiting()
    ready: list[tuple[int, Any]] = [(episode, None) for episode in range(len(episodes))]
    while ready:
        working: dict[Callable[[Any], Any], list[tuple[int, Sequence[Any]]]] = {}
        requests: list[GenerationRequest] = []
        for episode, received in ready:
            try:
                step = episodes[episode].send(received)
            except StopIteration as end:
                results[episode] = end.value
                continue
            if isinstance(step, Work):
                working.setdefault(step.compute, []).append((episode, step.items))
            else:
                waiting.add(episode, len(step.requests))
                requests += step.requests
        if requests:
            session.add(requests)
        ready = [pair for compute, parts in working.items() for pair in _applied(compute, parts, deal)]
        while not ready and waiting.episodes:
            ready = waiting.complete(session.advance())
    return [results[episode] for episode in range(len(episodes))]


def _applied(
    compute: Callable[[Any], Any], parts: Sequence[tuple[int, Sequence[Any]]], deal: Deal
) -> list[tuple[int, list[Any]]]:
    """Apply a function to the items of several episodes, in one deal; results by episode."""
    results = iter(deal(compute, [item for _, items in parts for item in items]))
    return [(episode, [next(results) for _ in items]) for episode, items in parts]


@dataclass
class _Waiting:
    """Knows which request belongs to which episode, and what has ended."""

    episodes: dict[int, list[Completion | None]] = field(default_factory=dict)
    """Completions of each waiting episode's step; None for a request that generates."""
    _places: list[tuple[int, int]] = field(default_factory=list)
    """(episode, place in its step) of every request of the session, by number."""

    def add(self, episode: int, requests: int) -> None:
        self._places += [(episode, place) for place in range(requests)]
        self.episodes[episode] = [None] * requests

    def complete(self, ended: Sequence[tuple[int, Completion]]) -> list[tuple[int, list[Any]]]:
        """Take completions; return those of each episode whose step has ended with them, by episode."""
        touched = set()
        for number, completion in ended:
            episode, place = self._places[number]
            self.episodes[episode][place] = completion
            touched.add(episode)
        whole = [episode for episode in sorted(touched) if None not in self.episodes[episode]]
        return [(episode, self.episodes.pop(episode)) for episode in whole]
