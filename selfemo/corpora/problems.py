"""What is wrong with a corpus file, and who decides what happens then.

A reader hands every fault it meets to a sink and carries on with the next row. `raise_first` makes that "stop at the first
fault" (training must not start on a damaged corpus); `list.append` makes it "collect them all" (`selfemo corpus check`). So
there is one reader per format, not a strict one and a lenient one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from selfemo.common.errors import UserError
from selfemo.common.printable import printable


@dataclass(frozen=True)
class Problem:
    """One fault in one file."""

    path: Path
    line: int
    """1-based line, 0 where the fault is the file's as a whole."""
    message: str
    """What was found, what was expected, and the remedy, in one line."""

    def __str__(self) -> str:
        return printable(
            f"{self.path}:{self.line}: {self.message}" if self.line else f"{self.path}: {self.message}"
        )


ProblemSink = Callable[[Problem], None]
"""Takes a fault; raises to stop the reader, returns to let it skip the row."""


def raise_first(problem: Problem) -> NoReturn:
    """The sink of a strict reading.

    Raises:
        UserError: always, with the problem as its line.
    """
    raise UserError(str(problem))
