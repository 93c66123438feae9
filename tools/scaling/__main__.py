"""Makes the scaling study: runs over local processes, plans for thousands of GPUs, and the cost of own parts.

    python -m tools.scaling --output docs/scaling                   # everything: half an hour, two idle cores
    python -m tools.scaling --parts                                 # own parts of simulated ranks alone
    python -m tools.scaling --output DIR --processes 1 2            # fewer measured runs
    python -m tools.scaling --output DIR --processes 0 --worlds 0   # planned curves alone, in seconds

Writes study.csv, study.json, study.png, study.svg and parts.csv. Runs are kept under --runs, and
finished ones are not made again.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selfemo.common.errors import EXIT_USER_ERROR, UserError
from tools.scaling.measured import measure
from tools.scaling.output import measured_before, write_parts, write_study
from tools.scaling.parts import FLAT, WORLDS, growth, measure_parts, own_cost
from tools.scaling.planned import plan_studies
from tools.scaling.rows import Row, in_order, with_efficiency

PLANNED = (
    (Path("examples/configs/qwen3_4b.yaml"), "qwen3-4b"),
    (Path("examples/configs/qwen3_8b.yaml"), "qwen3-8b"),
)
SHOWN = (
    "kind",
    "study",
    "model",
    "gpus",
    "samples",
    "training_layout",
    "generation_layout",
    "tokens_per_s_per_gpu",
    "step_s",
    "efficiency",
)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        parts = measure_parts([n for n in options.worlds if n], options.runs / "parts.json")
        console = Console(width=170)
        for what, factor in growth(parts).items():
            flat = "flat" if factor <= FLAT else "not flat"
            console.print(f"{what}: {factor:.2f} times as much in the largest world, {flat}")
        if options.parts and parts:
            console.print(f"wrote {write_parts(options.output, parts)}")
            return 0
        processes = [n for n in options.processes if n]
        rows = measure(processes, options.runs) if processes else measured_before(options.output)
        for config, model in PLANNED:
            rows += plan_studies(config, model, own_cost(parts))
    except UserError as error:
        print(f"scaling_study: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    rows = in_order(with_efficiency(rows))
    facts = {
        "command": shlex.join(
            ["python", "-m", "tools.scaling", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }
    console.print(_table(rows))
    for path in write_study(options.output, rows, parts, facts):
        console.print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/scaling/study"), help="directory for tables and plot"
    )
    parser.add_argument("--parts", action="store_true", help="measure the own parts alone")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/scaling"), help="directory for the measured runs"
    )
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2, 4],
        help="local process counts to measure; 0 keeps the rows that --output holds",
    )
    parser.add_argument(
        "--worlds",
        type=int,
        nargs="+",
        default=list(WORLDS),
        help="GPUs of the simulated worlds, for the own parts; 0 for none",
    )
    return parser


def _table(rows: list[Row]) -> Table:
    table = Table(title="measured rows ran here; planned rows never ran")
    for name in SHOWN:
        table.add_column(
            name.replace("_", " "), justify="left" if name in ("kind", "study", "model") else "right"
        )
    for row in rows:
        cells = (getattr(row, name) for name in SHOWN)
        table.add_row(*(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table


if __name__ == "__main__":
    sys.exit(main())
