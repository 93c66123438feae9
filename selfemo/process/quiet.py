"""Keeps libraries that print off the terminal of a command whose output is read by people and by pipes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from selfemo.common.errors import UserError


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries print, from Python and from C, off the terminal; told after all where the block fails by a fault of ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    with tempfile.TemporaryFile() as log:
        for number, _ in kept:
            os.dup2(log.fileno(), number)
        try:
            yield
        except UserError:
            _restore(kept)
            raise
        except BaseException:
            _restore(kept)
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        _restore(kept)


def _restore(kept: list[tuple[int, int]]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for number, copy in kept:
        os.dup2(copy, number)
        os.close(copy)
