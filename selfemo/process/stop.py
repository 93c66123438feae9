"""Receives SIGTERM and SIGUSR1 from the start of a run, and remembers them until the ranks agree to stop.

run/stoppable.py brings them to agreement. This is a module of its own because it needs no torch, whose import
is the first thing that takes long.
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
    """The signals that asked this process to stop."""

    def __init__(self) -> None:
        self.asked = 0
        """Number of the signal; 0 if none has come."""
        self._pipe: tuple[int, int] | None = None

    def listen(self) -> None:
        """Receive the signals from now on, even if the launcher had them ignored.

        Before, the launcher's choice holds.
        """
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        # The handler waits while the main thread is in native code; the byte in the pipe does not.
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def limit(self, grace_s: float) -> Callable[[], None]:
        """End the process `grace_s` seconds after a signal was seen. The watchdog calls this at every tick.

        A signal that came before this call counts too.
        """

        def start_clock() -> None:
            with contextlib.suppress(BlockingIOError):
                if self._pipe and set(os.read(self._pipe[0], 64)) & set(SIGNALS):
                    reason = (
                        f"asked to stop, and not done within checkpoint.grace_s={grace_s:g}; "
                        "the last checkpoint stands"
                    )
                    watchdog.limit(grace_s, reason)

        return start_clock

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
