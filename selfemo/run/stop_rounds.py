"""Lets the ranks agree, while they play episodes, whether to stop, without waiting for one another.

Engines take different numbers of steps, so they cannot meet before each. Instead the ranks reduce the
question in rounds, in the background: a rank joins the next round once all have joined the last one, and
looks at it between two engine calls. What a round says it says to all ranks, so all end in the same round,
wherever their engines are. A rank that has played its episodes takes part until none is left playing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from selfemo.process import watchdog
from selfemo.process.engine_ranks import EngineRanks
from selfemo.rollout.api import Completion, Engine, GenerationRequest, Session, check_room
from selfemo.run.stoppable import StopRequest

PLAYING = 1
FAILED = 2


class OtherRankFailed(Exception):
    """Raised on the other ranks, in the same round, if one has failed in work of its own."""


class StopRounds:
    """The rounds of one rollout."""

    def __init__(self, stop: StopRequest, ranks: EngineRanks, group: dist.ProcessGroup | None) -> None:
        """Take the parts.

        Args:
            ranks: those that share this rank's engine; they look at a round together.
            group: all ranks, over gloo (NCCL would hold a GPU until the last rank has joined); None: the
                default group.
        """
        self._stop, self._ranks, self._group = stop, ranks, group
        self._round: tuple[dist.Work, torch.Tensor] | None = None
        """The round that this rank has joined, and (signal, state) in it: the largest of all ranks', once
        all have joined."""

    def look(self) -> None:
        """Join the first round; later, if all have joined the last one, follow it and join the next.

        The ranks of an engine call it together. It does not wait for those of others.

        Raises:
            Stopped: some rank was asked to stop.
            OtherRankFailed: some rank failed.
        """
        if self._round is not None:
            if not all(self._ranks.deal(self._joined_by_all, range(self._ranks.size))):
                return
            self._follow()
        self._join(PLAYING)

    def end(self) -> None:
        """Take part until no rank plays any more. Raises as `look`."""
        state = PLAYING
        while state:
            if self._round is None:
                self._join(0)
            state = self._follow()

    def fail(self) -> None:
        """Tell the other ranks that this one has failed.

        Raises:
            Stopped: the ranks have agreed to stop meanwhile.
        """
        try:
            if self._round is not None:
                self._follow()
            self._join(FAILED)
            self._follow()
        except OtherRankFailed:
            return

    def _joined_by_all(self, _: int) -> bool:
        return self._round is not None and self._round[0].is_completed()

    def _join(self, state: int) -> None:
        found = torch.tensor([self._stop.asked, state])
        work = dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._round = (work, found)

    def _follow(self) -> int:
        """Wait for the present round, and do what it says; returns the largest state."""
        assert self._round is not None
        (work, found), self._round = self._round, None
        with watchdog.doing("agreement whether to stop"):
            work.wait()
        asked, state = found.tolist()
        if state == FAILED:
            raise OtherRankFailed
        self._stop.follow(asked)
        return int(state)


class GuardedEngine:
    """A generator: this rank's engine, whose calls are reported to the watchdog."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Generate one completion per request, in order. Raises as `GuardedSession.add`."""
        check_room(requests, self._engine.max_length)
        with watchdog.doing(f"engine call of {len(requests)} requests"):
            return self._engine.generate(requests)


class GuardedSession:
    """A session of this rank's engine that follows the rounds, and reports each call to the watchdog."""

    def __init__(self, session: Session, rounds: StopRounds, max_length: int) -> None:
        """Take the parts.

        Args:
            max_length: the engine's longest sequence, in tokens.
        """
        self._session, self._rounds, self._max_length = session, rounds, max_length
        self._in_progress = 0

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """Add requests.

        Raises:
            UserError: a prompt leaves no room for its completion in the engine's longest sequence.
        """
        check_room(requests, self._max_length)
        self._in_progress += len(requests)
        with watchdog.doing(f"engine call of {self._in_progress} requests"):
            self._session.add(requests)

    def advance(self) -> list[tuple[int, Completion]]:
        """Generate until a request ends. Raises as `StopRounds.look`."""
        self._rounds.look()
        with watchdog.doing(f"engine call of {self._in_progress} requests"):
            ended = self._session.advance()
        self._in_progress -= len(ended)
        return ended
