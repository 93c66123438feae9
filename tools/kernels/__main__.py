"""Measures the kernels: time and memory beside other implementations, compiled resources, counted traffic.

    python -m tools.kernels                               # time and peak memory on this machine's CPU
    python -m tools.kernels --aot [--write]               # registers, spills, 128-bit accesses on absent GPUs
    python -m tools.kernels --traffic                     # bytes moved and held per logit
    ... --json FILE                                       # the same, for a machine to read

Every figure is measured in the run that prints it. A figure that cannot be measured here is a row with
the reason. tools/gpu_kernels.py times them on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tools.kernels.benchmark.measure import Row, Sizes, run_all
from tools.kernels.benchmark.traffic_table import torch_rows, triton_rows


def main(arguments: list[str] | None = None) -> int:
    """Return exit status 1 if --aot finds a spill or a difference from the committed table, else 0."""
    options = _parser().parse_args(arguments)
    console = Console(width=150)
    command = shlex.join(
        ["python", "-m", "tools.kernels", *(sys.argv[1:] if arguments is None else arguments)]
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    document: dict[str, Any] = {"command": command, "machine": _machine(options.threads), "time": now}
    console.print(f"{command}\n{document['machine']}, {now}", highlight=False)
    failed = False
    if options.aot:
        document["aot"], failed = _aot(console, options.write)
    if options.traffic:
        document["traffic"] = _traffic(console)
    if not (options.aot or options.traffic):
        document["timing"] = [_timing(console, options, workload) for workload in options.workloads]
    if options.json:
        temporary = options.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(options.json)
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workloads", nargs="+", choices=["logits", "projection"], default=["logits", "projection"]
    )
    parser.add_argument("--tokens", type=int, help="tokens; default 256 (logits) and 1024 (projection)")
    parser.add_argument("--hidden", type=int, default=576, help="width of the hidden states")
    parser.add_argument("--vocab", type=int, help="columns; default 151936 (logits) and 49152 (projection)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default bfloat16 (logits), float32 (projection)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="rounds; the median is reported")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument(
        "--aot",
        action="store_true",
        help="compile for sm_80, sm_90, sm_100 and gfx942 and compare with the table",
    )
    parser.add_argument("--write", action="store_true", help="with --aot: replace the committed table")
    parser.add_argument("--traffic", action="store_true", help="count bytes per logit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser


def _timing(console: Console, options: argparse.Namespace, workload: str) -> dict[str, Any]:
    logits = workload == "logits"
    sizes = Sizes(
        workload=workload,
        tokens=options.tokens or (256 if logits else 1024),
        hidden=options.hidden,
        columns=options.vocab or (151_936 if logits else 49_152),
        dtype=options.dtype or ("bfloat16" if logits else "float32"),
        device="cpu",
        repeats=options.repeats,
    )
    rows = run_all(sizes, options.threads)
    console.print(_timing_table(sizes, rows))
    console.print(
        f"load average at the end: {', '.join(f'{load:.1f}' for load in os.getloadavg())} on "
        f"{os.cpu_count()} cores"
    )
    return {"sizes": asdict(sizes), "rows": [asdict(row) for row in rows]}


def _timing_table(sizes: Sizes, rows: list[Row]) -> Table:
    shape = (
        f"T={sizes.tokens}, "
        + (f"H={sizes.hidden}, " if sizes.workload == "projection" else "")
        + f"V={sizes.columns}"
    )
    table = Table(
        title=f"{sizes.workload}: {shape}, {sizes.dtype}, forward + backward, median of {sizes.repeats}",
        title_justify="left",
    )
    for heading in (
        "formula",
        "median ms",
        "fastest ms",
        "CPU ms",
        "first call ms",
        "extra peak MB",
        "error",
        "note",
    ):
        table.add_column(heading, justify="left" if heading in ("formula", "note") else "right")
    for row in rows:
        peak_mb = None if row.extra_peak_bytes is None else row.extra_peak_bytes / 1e6
        cells = [
            row.formula,
            *(_number(x) for x in (row.median_ms, row.fastest_ms, row.cpu_ms, row.first_call_ms, peak_mb)),
        ]
        cells += [
            "" if row.error is None else f"{row.error:.1e}",
            row.note if row.median_ms is not None else f"not measured: {row.note}",
        ]
        table.add_row(*cells)
    return table


def _aot(console: Console, write: bool) -> tuple[list[dict[str, Any]], bool]:
    from tools.kernels import aot

    measured = list(aot.compile_all())
    table = Table(title="ahead-of-time compilation, bf16 logits", title_justify="left")
    for entry in fields(aot.Resources):
        table.add_column(
            entry.name.replace("_", " "), justify="left" if entry.name in ("target", "kernel") else "right"
        )
    for row in measured:
        table.add_row(*(str(value) for value in asdict(row).values()))
    console.print(table)
    if write:
        aot.write_table(measured)
        console.print(f"wrote {aot.TABLE}")
    problems = [f"{row.target} {row.kernel} spills" for row in measured if row.spills] + aot.differences(
        measured, aot.committed()
    )
    for problem in problems:
        console.print(problem)
    if not problems:
        console.print("no spills; equal to the committed table")
    return [asdict(row) for row in measured], bool(problems)


def _traffic(console: Console) -> list[dict[str, Any]]:
    rows = [*torch_rows(), *triton_rows()]
    table = Table(title="bytes per bf16 logit, counted", title_justify="left")
    for heading in ("formula", "read", "written", "total", "peak beside the logits"):
        table.add_column(heading, justify="left" if heading == "formula" else "right")
    for row in rows:
        peak = "" if row.peak is None else f"{row.peak:.2f}"
        table.add_row(
            row.formula, f"{row.read:.2f}", f"{row.written:.2f}", f"{row.read + row.written:.2f}", peak
        )
    console.print(table)
    return [asdict(row) for row in rows]


def _machine(threads: int) -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{model or platform.machine()}, {threads} threads, {capability}, {memory_gib:.0f} GiB, "
        f"torch {torch.__version__}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
