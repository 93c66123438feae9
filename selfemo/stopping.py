"""SIGTERM and SIGUSR1 ask a run to stop: all ranks agree where, write a checkpoint there, and end with status 0.

Signals reach ranks at different moments, or only some of them, so no rank acts on its own: before every engine call and after every step
the ranks reduce "was I asked?". Before an engine call nothing of the iteration has changed a weight or a record yet, so the run can go on
from where the iteration began.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from types import FrameType

import torch
import torch.distributed as dist

from selfemo.rollout.request import Completion, GenerationRequest, Generator
from selfemo.watchdog import Watchdog

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was asked to stop, on every rank at the same place."""


class StopRequest:
    """Whether some rank was asked to stop."""

    def __init__(self, device: torch.device, watchdog: Watchdog, grace_s: float) -> None:
        self._device, self._watchdog, self._grace_s = device, watchdog, grace_s
        self._asked = 0
        self._pipe: tuple[int, int] | None = None

    def listen(self) -> None:
        """From here on the signals ask; before, they end the process as they always do."""
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        # The handler waits while the main thread is in native code; the byte in the pipe does not.
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._ask)
        self._watchdog.on_tick = self._start_clock

    def check(self) -> None:
        """Raise Stopped on every rank if some rank was asked. Collective."""
        asked = torch.tensor([self._asked], device=self._device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked:
            self._asked = int(asked)
            raise Stopped(signal.Signals(self._asked).name)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number

    def _start_clock(self) -> None:
        """Called by the watchdog's thread."""
        with contextlib.suppress(BlockingIOError):
            if self._pipe and set(os.read(self._pipe[0], 64)) & set(SIGNALS):
                reason = f"asked to stop, and not done within checkpoint.grace_s={self._grace_s:g}; the last checkpoint stands"
                self._watchdog.limit(self._grace_s, reason)


class GuardedGenerator:
    """A generator whose calls the watchdog knows of, and before which a run can stop."""

    def __init__(self, generator: Generator, watchdog: Watchdog, stop: StopRequest) -> None:
        self._generator, self._watchdog, self._stop = generator, watchdog, stop

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """As the generator's; raises Stopped instead, on every rank."""
        self._stop.check()
        self._watchdog.call(f"engine call of {len(requests)} requests")
        completions = list(self._generator.generate(requests))
        self._watchdog.call("")
        return completions
