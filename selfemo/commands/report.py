"""Write the report page once, or again whenever the run has recorded something (`selfemo report`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from selfemo.report.dialogues import MAX_DIALOGUES

POLL_S = 2
REFRESH_S = 5
"""Seconds after which a page that follows a live run loads itself again."""


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run's output_dir, finished or not.")],
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Follow a live run until it ends: the page is rewritten and reloads itself."
        ),
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Where to write; default RUN_DIR/report.html.")] = None,
    gpu: Annotated[
        str,
        typer.Option(
            help="Plan seconds too, for this GPU, such as h100-80g, to compare with those measured."
        ),
    ] = "",
    dialogues: Annotated[int, typer.Option(min=0, help="Most dialogues on the page.")] = MAX_DIALOGUES,
) -> None:
    """Write one self-contained HTML file about a run: figures, curves, emotions, time, plan,
    flywheel, dialogues."""
    from selfemo.records.reading import read_run
    from selfemo.report.page import PAGE_NAME, render, write_page

    target = output or run_dir / PAGE_NAME
    seen = -1
    try:
        while watch:
            records = read_run(run_dir)
            if records.summary is not None:
                break
            if len(records.events) != seen:
                write_page(target, render(records, REFRESH_S, gpu, dialogues))
                if seen < 0:
                    typer.echo(f"{target}: follows the run; open it in a browser; Ctrl-C ends", err=True)
                seen = len(records.events)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        pass  # the last page stays, without reloading itself
    write_page(target, render(read_run(run_dir), 0, gpu, dialogues))
    typer.echo(str(target))
