"""Stops a run on SIGTERM or SIGUSR1.

All ranks agree on the place, write a checkpoint there, and end with status 0.

Signals reach ranks at different moments, or only some of them, so no rank acts on its own. After set-up,
before every engine call and after every step the ranks reduce the question "was I asked to stop?". Before an
engine call nothing of the iteration has changed a weight or a record yet, so the run can go on from the start
of the iteration.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

import torch
import torch.distributed as dist

from selfemo.process import watchdog
from selfemo.process.stop import StopSignals
from selfemo.rollout.api import Completion, GenerationRequest, Generator


class Stopped(Exception):
    """Raised on every rank at the same place if the run was asked to stop."""


class OtherRankFailed(Exception):
    """Raised on the other ranks, at their next check, if one has failed in work of its own."""


class StopRequest:
    """The request to stop, shared by the ranks."""

    def __init__(self, device: torch.device, signals: StopSignals) -> None:
        self._device, self._signals = device, signals

    def check(self) -> None:
        """Raise Stopped on every rank if some rank was asked. Collective.

        Raises:
            OtherRankFailed: a rank called `failed` instead; no rank stops then.
        """
        asked, failed = self._agree(failed=False)
        if failed:
            raise OtherRankFailed
        if asked:
            self._signals.asked = asked
            raise Stopped(signal.Signals(asked).name)

    def failed(self) -> None:
        """Meet the check that the other ranks are at or come to, and end their work there."""
        self._agree(failed=True)

    def _agree(self, failed: bool) -> tuple[int, int]:
        found = torch.tensor([self._signals.asked, failed], device=self._device)
        with watchdog.doing("agreement whether to stop"):
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        asked, failures = found.tolist()
        return asked, failures


class GuardedGenerator:
    """A generator that can stop the run before each call, and reports each call to the watchdog."""

    def __init__(self, generator: Generator, stop: StopRequest) -> None:
        self._generator, self._stop = generator, stop

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Generate as the wrapped generator does.

        Raises:
            Stopped: on every rank, if some rank was asked to stop.
        """
        self._stop.check()
        with watchdog.doing(f"engine call of {len(requests)} requests"):
            return list(self._generator.generate(requests))
