"""Defines UserError, the one exception that a user sees without a traceback.

Anything that a user can cause and mend (a missing file, a malformed row, an unknown key, a layout that does
not divide) raises UserError with one line: the thing (file:line, field, tensor, rank), the expectation, and
the remedy. `selfemo.commands.main` prints that line and exits with EXIT_USER_ERROR. Every other exception is
a bug of selfemo and keeps its traceback.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from selfemo.common.printable import one_line

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake in input or environment.

    str() is one printable line that names the thing, the expectation and the remedy.
    """

    shared = False
    """True if every rank of a run raises it, so that rank 0 prints it for all; see `on_all_ranks`."""

    def __init__(self, message: str) -> None:
        """Escape characters that are not printable, since the message may quote a hostile file."""
        super().__init__(one_line(message))


def on_all_ranks[E: BaseException](error: E) -> E:
    """Mark a UserError as raised on every rank, and return the error.

    The caller must know that every rank raises it.
    """
    if isinstance(error, UserError):
        error.shared = True
    return error


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Print a UserError of the block as one line, and exit with EXIT_USER_ERROR, as the commands do."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return a hint for a mistyped name: " (did you mean 'x'?)", with the closest of `valid`.

    "" if none is close.
    """
    close = difflib.get_close_matches(word, list(valid), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
