"""Shows rank 0's stages, a progress bar and tables; everything else goes to a log file per rank.

Libraries print from Python and from C, so the process's file descriptors 1 and 2 are pointed at the log, and
the real terminal is kept for this module alone. Until a launch holds the run's directory, the log is a
temporary file: a launch that is refused leaves nothing there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from selfemo.common.printable import printable
from selfemo.process.plain_console import plain_console
from selfemo.records.directory import LOGS_NAME, unwritable


class Terminal:
    """Rank 0's output; on other ranks every method does nothing."""

    def __init__(self, is_main: bool, run_dir: Path, rank: int) -> None:
        """Point file descriptors 1 and 2 at a temporary file, which `open_log` moves into the run."""
        self._final_path = run_dir / LOGS_NAME / f"rank-{rank}.log"
        log, path = tempfile.mkstemp(prefix=f"selfemo-rank-{rank}-", suffix=".log")
        self.log_path = Path(path)
        """Where this rank's log is now."""
        self._is_main = is_main
        self._real: TextIO = os.fdopen(os.dup(2), "w", errors="backslashreplace")
        self._console = plain_console(file=self._real, quiet=not is_main)
        _redirect(log)

    def open_log(self) -> None:
        """Go on in the run's log, with what this rank has written so far.

        Raises:
            UserError: the log cannot be written.
        """
        try:
            self._final_path.parent.mkdir(parents=True, exist_ok=True)
            log = os.open(self._final_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise unwritable(self._final_path, error) from None
        _redirect(log)
        with self._final_path.open("ab") as file, contextlib.suppress(OSError):
            file.write(self.log_path.read_bytes())
        self.drop_log()
        self.log_path = self._final_path

    def drop_log(self) -> None:
        """Remove the temporary log, which nobody is to read."""
        if self.log_path != self._final_path:
            self.log_path.unlink(missing_ok=True)

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(_shown(text), soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table whose first column holds names and whose others hold figures."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def error(self, text: str) -> None:
        """Print one line on any rank, for a fault that ends the run."""
        self._real.write(_shown(text.rstrip("\n")) + "\n")
        self._real.flush()

    @contextmanager
    def progress(self, stage: str, total: int) -> Iterator[Bar]:
        """Show a bar for one stage. Without a terminal, a line is printed at its end instead."""
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(
            *columns, console=self._console, disable=not self._is_main, transient=False
        ) as progress:
            yield Bar(progress, stage, total)


def _shown(text: str) -> str:
    """Escape a text that may quote a file of the run, line by line."""
    return "\n".join(map(printable, text.split("\n")))


def _redirect(log: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


class Bar:
    """The bar of one stage."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(stage, total=total, note="")

    def advance(self, note: str) -> None:
        """Add one unit that is done; `note` shows its figures."""
        self._progress.update(self._task, advance=1, note=note)

    def skip(self, units: int) -> None:
        """Add the units that were done before this process."""
        self._progress.update(self._task, completed=units)
