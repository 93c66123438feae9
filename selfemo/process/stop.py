"""SIGTERM and SIGUSR1 from the first moment of a run: a request to stop is remembered until the ranks can agree on it (run/stoppable.py).

A module of its own because it needs no torch, the import of which is the first thing that takes long.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from selfemo.process import watchdog

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = 0
        """The number of the signal; 0 before one has come."""
        self._pipe: tuple[int, int] | None = None

    def listen(self) -> None:
        """From here on the signals ask, also where the launcher had them ignored; before, they do what the launcher chose."""
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        # The handler waits while the main thread is in native code; the byte in the pipe does not.
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def limit(self, grace_s: float) -> Callable[[], None]:
        """What the watchdog does at every tick: end the process `grace_s` after it has seen a signal.

        A signal that came before this call counts too.
        """

        def start_clock() -> None:
            with contextlib.suppress(BlockingIOError):
                if self._pipe and set(os.read(self._pipe[0], 64)) & set(SIGNALS):
                    reason = f"asked to stop, and not done within checkpoint.grace_s={grace_s:g}; the last checkpoint stands"
                    watchdog.limit(grace_s, reason)

        return start_clock

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
