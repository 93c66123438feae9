"""Start a watchdog in the process of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from selfemo.process import watchdog

LONG_S = 3600.0


@contextmanager
def calls_told() -> Iterator[list[str]]:
    """Start a watchdog whose deadlines never end.

    Yields the list of calls it is told of, with "" between them.
    """
    told: list[str] = []

    class Recording(watchdog.Watchdog):
        def call(self, name: str) -> None:
            told.append(name)
            super().call(name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(watchdog, "Watchdog", Recording)
        patched.setattr(watchdog, "_watchdog", None)
        watchdog.start(3, LONG_S, LONG_S, print)
        try:
            yield told
        finally:
            watchdog.stop()
