"""Writes the study: a CSV and a JSON of all rows, and a plot.

In the plot, measured and planned points cannot be taken for each other.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from tools.scaling.parts import RankCost, growth
from tools.scaling.rows import Row, in_order

SCHEMA = 2
COLOURS = ("#0b6e99", "#b3541e", "#4b7f52", "#7a4fa3")
PHASES = ("generate_s", "logprob_s", "train_s", "sync_s", "other_s")


def write_study(
    directory: Path, rows: Sequence[Row], parts: Sequence[RankCost], facts: dict[str, Any]
) -> list[Path]:
    """Write study.csv, study.json, study.png, study.svg, and parts.csv if parts were measured.

    Each is written under a temporary name first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = in_order(rows)
    document = {
        "schema": SCHEMA,
        **facts,
        "rows": [asdict(row) for row in rows],
        "parts": [_part(cost) for cost in parts],
    }
    document["parts_growth"] = growth(parts)
    written = [
        _write(
            directory / "study.csv",
            _csv([asdict(row) for row in rows], [field.name for field in fields(Row)]),
        ),
        _write(directory / "study.json", json.dumps(document, indent=1) + "\n"),
    ]
    if parts:
        written.append(write_parts(directory, parts))
    figure = draw(rows, parts)
    for kind in ("png", "svg"):
        target = directory / f"study.{kind}"
        temporary = target.with_name(f".{target.name}")
        figure.savefig(temporary, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
        os.replace(temporary, target)
        written.append(target)
    return written


def measured_before(directory: Path) -> list[Row]:
    """Read the measured rows of an earlier study; their notes then say when they were measured."""
    path = directory / "study.json"
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    found = [Row(**row) for row in document["rows"] if row["kind"] == "measured"]
    told = f"measured {document['date']}"
    return [row if "measured " in row.note else replace(row, note=f"{row.note}; {told}") for row in found]


def write_parts(directory: Path, parts: Sequence[RankCost]) -> Path:
    """Write parts.csv: one line per simulated rank."""
    directory.mkdir(parents=True, exist_ok=True)
    return _write(directory / "parts.csv", _csv([_part(cost) for cost in parts], list(_part(parts[0]))))


def draw(rows: Sequence[Row], parts: Sequence[RankCost]) -> Any:
    """Draw throughput and efficiency by size, the share of each phase, and what own parts cost a rank.

    Measured points are filled and joined by solid lines; planned ones are hollow and dashed, on the
    same axes, over a shaded ground.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    (rate, efficiency), (phases, cost) = figure.subplots(2, 2)
    _curves(rate, rows, lambda row: row.tokens_per_s_per_gpu)
    rate.set(yscale="log", ylabel="tokens/s per GPU or process", title="throughput")
    _curves(efficiency, rows, lambda row: row.efficiency)
    efficiency.set(ylim=(0, 1.25), ylabel="share of the smallest run's", title="efficiency")
    efficiency.legend(fontsize=7, loc="lower left")
    _phase_bars(phases, rows)
    _part_curves(cost, parts)
    return figure


def _curves(axes: Any, rows: Sequence[Row], value: Callable[[Row], float]) -> None:
    studies = list(dict.fromkeys((row.kind, row.study, row.model, row.hardware) for row in rows))
    for (kind, study, model, hardware), colour in zip(studies, COLOURS * len(studies)):
        points = [
            row
            for row in rows
            if (row.kind, row.study, row.model, row.hardware) == (kind, study, model, hardware)
        ]
        style = (
            {"linestyle": "-", "marker": "o"}
            if kind == "measured"
            else {"linestyle": "--", "marker": "o", "markerfacecolor": "none"}
        )
        label = f"{kind.upper()} {study}: {model}, {hardware}"
        axes.plot(
            [row.gpus for row in points], [value(row) for row in points], color=colour, label=label, **style
        )
    planned = [row.gpus for row in rows if row.kind == "planned"]
    if planned:
        axes.axvspan(min(planned) / 1.4, max(planned) * 1.4, color="#f1ede4", zorder=0)
        axes.text(
            max(planned),
            0.98,
            "planned, not run",
            transform=axes.get_xaxis_transform(),
            ha="right",
            va="top",
            fontsize=8,
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("GPUs (planned) or local processes (measured)")
    axes.grid(alpha=0.3)


def _phase_bars(axes: Any, rows: Sequence[Row]) -> None:
    weak = [row for row in rows if row.study == "weak"]
    names = [f"{row.gpus}{'' if row.kind == 'measured' else ' (plan)'}" for row in weak]
    bottom = [0.0] * len(weak)
    for phase, colour in zip(PHASES, (*COLOURS, "#999999")):
        shares = [(getattr(row, phase) or 0.0) / row.step_s for row in weak]
        bars = axes.bar(range(len(weak)), shares, bottom=bottom, color=colour, label=phase.removesuffix("_s"))
        for bar, row in zip(bars, weak):
            bar.set_hatch("" if row.kind == "measured" else "//")
        bottom = [low + share for low, share in zip(bottom, shares)]
    axes.set_xticks(range(len(weak)), names, rotation=60, fontsize=7)
    axes.set(ylabel="share of a step", title="phases, weak scaling (hatched: planned)")
    axes.legend(fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.22))


def _part_curves(axes: Any, parts: Sequence[RankCost]) -> None:
    for is_first, style in ((True, "-o"), (False, "--s")):
        mine = [cost for cost in parts if (cost.rank == 0) == is_first]
        who = "rank 0" if is_first else "another rank"
        for number, part in enumerate(mine[0].parts if mine else ()):
            milliseconds = [cost.parts[part] * 1e3 for cost in mine]
            axes.plot(
                [cost.gpus for cost in mine], milliseconds, style, color=f"C{number}", label=f"{part}, {who}"
            )
    axes.set_xscale("log", base=2)
    axes.set(
        yscale="log",
        xlabel="GPUs (1,152 samples each)",
        ylabel="ms per iteration",
        title="own parts of one rank, MEASURED in a simulated world",
    )
    axes.grid(alpha=0.3)
    if parts:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _part(cost: RankCost) -> dict[str, Any]:
    return {
        "gpus": cost.gpus,
        "rank": cost.rank,
        "samples": cost.samples,
        "groups": cost.groups,
        "seconds": cost.seconds,
        "loop_s": cost.loop_s,
        "received_bytes": cost.received_bytes,
        "peak_bytes": cost.peak_bytes,
        **{f"{part} s": seconds for part, seconds in cost.parts.items()},
    }


def _csv(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
