"""Describe a fault or an oddity in a corpus file, and let the caller decide the consequence.

A reader hands every fault to a sink and goes on with the next row. `raise_first` stops at the first
fault, because training must not start on a damaged corpus; `list.append` collects them all for
`selfemo corpus check`. Each format therefore has one reader, not a strict one and a lenient one.
A row that can be read and looks wrong, such as one whose apostrophes are "?", is an oddity: reading goes
on, and `selfemo.corpora.oddities` tells when there are too many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.common.printable import printable


@dataclass(frozen=True)
class Problem:
    """One fault in one file."""

    path: Path
    line: int
    """1-based line, 0 if the fault concerns the file as a whole."""
    message: str
    """The value found, the value expected, and the remedy, in one line."""
    odd: str = ""
    """Kind of oddity, such as "a lost apostrophe", if the row was read; empty for a fault."""

    def __str__(self) -> str:
        return printable(
            f"{self.path}:{self.line}: {self.message}" if self.line else f"{self.path}: {self.message}"
        )


ProblemSink = Callable[[Problem], None]
"""Takes a fault. It raises to stop the reader, or returns to let it skip the row."""


def raise_first(problem: Problem) -> None:
    """Raise on the first fault, for a strict reading; oddities pass.

    Raises:
        UserError: for a fault, with the problem as its line.
    """
    if not problem.odd:
        raise UserError(str(problem))
