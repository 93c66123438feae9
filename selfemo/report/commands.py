"""`selfemo report`: write the page once, or again whenever metrics.jsonl grows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

POLL_S = 2
REFRESH_S = 5


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run's output_dir.")],
    watch: Annotated[bool, typer.Option("--watch", help="Follow a live run: write again when it records something.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to write; default RUN_DIR/report.html.")] = None,
) -> None:
    """Write one self-contained HTML file about a run."""
    from selfemo.report.page import render, write_page
    from selfemo.report.records import METRICS_NAME, read_run

    target = output or run_dir / "report.html"
    size = -1
    while True:
        records = read_run(run_dir)
        live = watch and records.summary is None
        grown = (run_dir / METRICS_NAME).stat().st_size
        if grown != size or not live:
            write_page(target, render(records, REFRESH_S if live else 0))
            size = grown
        if not live:
            break
        time.sleep(POLL_S)
    typer.echo(str(target))
