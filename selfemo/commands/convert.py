"""Run the two conversion commands: a progress bar in bytes with the tensor's name, and one line
with status 2 for an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from selfemo.common.errors import EXIT_USER_ERROR, UserError
from selfemo.process.plain_console import plain_console
from selfemo.weights.convert import Conversion
from selfemo.weights.convert import Progress as Report


def run_conversion(convert: Callable[[Report], Conversion], total_bytes: Callable[[], int]) -> None:
    """Run a conversion under a progress bar on stderr and print one line about it.

    Args:
        total_bytes: returns the bytes at which the bar ends. It is called first, so that it may
            raise UserError as well.
    """
    console = plain_console(stderr=True)
    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    started = time.perf_counter()
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=total_bytes())
            done = convert(lambda name, amount: bar.update(task, advance=amount, description=escape(name)))
    except UserError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True)
        sys.exit(EXIT_USER_ERROR)
    seconds = time.perf_counter() - started
    verified = ", every tensor verified bitwise" if done.verified else ""
    print(
        f"{done.tensors} tensors, {done.bytes:,} bytes in {seconds:.1f} s "
        f"({done.bytes / seconds / 1e9:.2f} GB/s){verified}"
    )
