"""Prints a matrix of counts whole: one that is wider than the terminal is printed in several parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.table import Table

GAP = 2
"""Columns of the terminal between two of a table: its padding and its divider."""


@dataclass(frozen=True)
class Matrix:
    """A matrix of counts with named rows and columns; rich prints it."""

    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]
    """[row][column]."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Yield tables of as many columns as fit, each with all rows."""
        widths = [
            max(cell_len(name), *(len(str(row[i])) for row in self.counts)) + GAP
            for i, name in enumerate(self.columns)
        ]
        first = max(map(cell_len, (self.corner, *self.rows))) + GAP + 1  # the box has an edge
        start = 0
        while start < len(widths):
            stop, used = start + 1, first + widths[start]
            while stop < len(widths) and used + widths[stop] <= options.max_width:
                used += widths[stop]
                stop += 1
            yield self._part(start, stop)
            start = stop

    def _part(self, start: int, stop: int) -> Table:
        table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0))
        table.add_column(self.corner, no_wrap=True)
        for name in self.columns[start:stop]:
            table.add_column(escape(name), justify="right", no_wrap=True)
        for name, row in zip(self.rows, self.counts, strict=True):
            table.add_row(escape(name), *map(str, row[start:stop]))
        return table
