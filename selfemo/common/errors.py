"""The one exception a user may see without a traceback.

Anything a user can cause and mend (a missing file, a malformed row, an unknown key, a layout that does not divide) raises
UserError with one line: the thing (file:line, field, tensor, rank), what was expected, and the remedy. `selfemo.commands.main` prints
that line and exits with EXIT_USER_ERROR; every other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from selfemo.common.printable import one_line

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake in input or environment; str() is one printable line that names the thing, what was expected, and the remedy."""

    shared = False
    """Every rank of a run raises it, so that rank 0 tells it for all; see `on_all_ranks`."""

    def __init__(self, message: str) -> None:
        """What the message quotes may come from a hostile file: what is not printable is shown escaped."""
        super().__init__(one_line(message))


def on_all_ranks[E: BaseException](error: E) -> E:
    """The same error, marked where it is a UserError: the caller knows that every rank raises it."""
    if isinstance(error, UserError):
        error.shared = True
    return error


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped name: " (did you mean 'x'?)" for the closest of `valid`, or "" when none is close."""
    close = difflib.get_close_matches(word, list(valid), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
