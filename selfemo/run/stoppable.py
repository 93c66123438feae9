"""Stops a run on SIGTERM or SIGUSR1.

All ranks agree on the place, write a checkpoint there, and end with status 0.

Signals reach ranks at different moments, or only some of them, so no rank acts on its own. After set-up,
before every engine call, during a rollout (run/stop_rounds.py) and after every step the ranks reduce the
question "was I asked to stop?". Before the end of a rollout nothing of the iteration has changed a weight or
a record yet, so the run can go on from the start of the iteration.
"""

from __future__ import annotations

import signal

import torch
import torch.distributed as dist

from selfemo.process import watchdog
from selfemo.process.stop import StopSignals


class Stopped(Exception):
    """Raised on every rank at the same place if the run was asked to stop."""


class StopRequest:
    """The request to stop, shared by the ranks."""

    def __init__(self, device: torch.device, signals: StopSignals) -> None:
        self._device, self._signals = device, signals

    @property
    def asked(self) -> int:
        """Number of the signal that asked this rank; 0 if none has come."""
        return self._signals.asked

    def check(self) -> None:
        """Raise Stopped on every rank if some rank was asked. Collective."""
        found = torch.tensor([self.asked], device=self._device)
        with watchdog.doing("agreement whether to stop"):
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        self.follow(int(found))

    def follow(self, asked: int) -> None:
        """Raise Stopped if some rank was asked, by the signal of this number."""
        if asked:
            self._signals.asked = asked
            raise Stopped(signal.Signals(asked).name)
