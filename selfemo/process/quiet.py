"""Silences libraries in commands whose output people and pipes read."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from selfemo.common.errors import UserError


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Send everything that libraries print, from Python and from C, to a temporary file.

    If the block raises anything but a UserError, print the file: it is evidence of a bug.
    """
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
