"""Shows how the run's time was spent: spans of phases per rank, drawn in order, and their sums.

A rank that waits for others waits inside its phase (a collective ends for all ranks together), so bars
show when a rank entered a phase late, not how long it worked in it. Between spans lie checkpoints,
records, and other work that no phase counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from selfemo.records.reading import RunRecords
from selfemo.report.charts import INK, SERIES, SOFT, Chart, as_text, make_chart

PHASES = ("setup", "sft", "rollout", "reward", "train", "sync", "eval", "save")
"""The phases, in this order; each has a colour."""
MAX_ROWS = 16
"""Most ranks that a chart shows. Of more, evenly spaced ones are shown."""
WIDTH_IN = 9.5
COLUMNS = 300
"""A rank with more spans than this is drawn in so many columns, each in the colour of the phase that
took most of it.
"""
ZOOMED = 2
"""Number of iterations that the closer chart shows: the last ones."""

PAUSE = ""
"""Stands for a time that belongs to no phase."""

Span = tuple[str, float, float]
"""(phase, start, end), seconds since the first span."""
Spans = dict[int, list[Span]]
"""Spans by rank."""


@dataclass(frozen=True)
class PhaseSum:
    """Seconds of one phase, on the rank that spent least and on the one that spent most."""

    phase: str
    spans: int
    """Number of spans on the main rank."""
    least_s: float
    most_s: float
    share: float
    """Share of the run so far, on the main rank."""


@dataclass(frozen=True)
class TimeLine:
    """Charts and sums; `charts` is empty if nothing was recorded."""

    charts: tuple[Chart, ...]
    sums: tuple[PhaseSum, ...]
    total_s: float
    ranks: int
    """Number of ranks that sent their spans."""


def time_line(records: RunRecords) -> TimeLine:
    """Draw the time line of a run so far."""
    spans = collect_spans(records)
    if not any(spans.values()):
        return TimeLine((), (), 0.0, 0)
    total_s = max(end for mine in spans.values() for _, _, end in mine)
    charts = [_chart("Whole run", spans, 0.0, total_s)]
    start_s = _start_of_last(spans, ZOOMED)
    if start_s is not None:
        end_s = max(
            (end for mine in spans.values() for name, _, end in mine if name == "sync"), default=total_s
        )
        charts.append(_chart(f"Last {ZOOMED} iterations", spans, start_s, end_s))
    return TimeLine(tuple(charts), tuple(_sums(spans, total_s)), total_s, len(spans))


def collect_spans(records: RunRecords) -> Spans:
    """Read every rank's spans of the whole run, from its first one on."""
    found: Spans = {}
    for event in records.of("phases"):
        for rank, spans in event["ranks"].items():
            found.setdefault(int(rank), []).extend((name, start, end) for name, start, end in spans)
    first = min((start for mine in found.values() for _, start, _ in mine), default=0.0)
    return {
        rank: [(name, start - first, end - first) for name, start, end in mine]
        for rank, mine in sorted(found.items())
    }


def _start_of_last(spans: Spans, iterations: int) -> float | None:
    """Return the start of the last iterations on the main rank; None if there are no others."""
    rollouts = [start for name, start, _ in spans[min(spans)] if name == "rollout"]
    return rollouts[-iterations] if len(rollouts) > iterations else None


def _sums(spans: Spans, total_s: float) -> list[PhaseSum]:
    main = min(spans)
    by_rank: dict[int, dict[str, float]] = {rank: {} for rank in spans}
    for rank, mine in spans.items():
        for name, start, end in mine:
            by_rank[rank][name] = by_rank[rank].get(name, 0.0) + end - start
    names = sorted({name for seconds in by_rank.values() for name in seconds}, key=_order)
    return [
        PhaseSum(
            name,
            sum(span[0] == name for span in spans[main]),
            min(seconds.get(name, 0.0) for seconds in by_rank.values()),
            max(seconds.get(name, 0.0) for seconds in by_rank.values()),
            by_rank[main].get(name, 0.0) / total_s if total_s else 0.0,
        )
        for name in names
    ]


def _chart(title: str, spans: Spans, start_s: float, end_s: float) -> Chart:
    ranks = list(spans)
    rows = [ranks[i * len(ranks) // min(MAX_ROWS, len(ranks))] for i in range(min(MAX_ROWS, len(ranks)))]
    shown = {rank: [s for s in spans[rank] if s[2] > start_s and s[1] < end_s] for rank in rows}
    summary = _summary(shown)
    is_coarse = end_s > start_s and any(len(mine) > COLUMNS for mine in shown.values())
    if is_coarse:
        shown = {rank: coarse_spans(mine, start_s, end_s) for rank, mine in shown.items()}
    names = sorted({name for mine in shown.values() for name, _, _ in mine}, key=_order)

    def draw(axes: Axes) -> None:
        axes.grid(visible=False, axis="y")
        for row, rank in enumerate(rows):
            for name in names:
                bars = [(start, end - start) for phase, start, end in shown[rank] if phase == name]
                axes.broken_barh(bars, (row - 0.36, 0.72), facecolors=_colour(name))
        axes.set_yticks(range(len(rows)), [f"rank {rank}" for rank in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(start_s, end_s)
        axes.set_xlabel(
            "seconds since the run began"
            + (f"; each of {COLUMNS} columns shows its longest phase" if is_coarse else "")
        )
        patches = [Patch(color=_colour(name), label=as_text(name)) for name in names]
        axes.legend(
            handles=patches,
            frameon=False,
            labelcolor=INK,
            fontsize=8,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(names),
        )

    return make_chart(title, draw, summary, (WIDTH_IN, 0.9 + 0.32 * len(rows)))


def coarse_spans(spans: Sequence[Span], start_s: float, end_s: float, columns: int = COLUMNS) -> list[Span]:
    """Reduce spans to whole columns, and join equal neighbours.

    Each column takes the phase, or the pause, that fills most of it.
    """
    width_s = (end_s - start_s) / columns
    filled: list[dict[str, float]] = [{} for _ in range(columns)]
    for name, start, end in spans:
        for column in range(
            max(0, int((start - start_s) / width_s)), min(columns, math.ceil((end - start_s) / width_s))
        ):
            left_s = start_s + column * width_s
            overlap_s = min(end, left_s + width_s) - max(start, left_s)
            filled[column][name] = filled[column].get(name, 0.0) + overlap_s
    longest = [
        max({PAUSE: width_s - sum(seconds.values()), **seconds}.items(), key=lambda item: item[1])[0]
        for seconds in filled
    ]
    found: list[Span] = []
    for name, run in groupby(range(columns), key=longest.__getitem__):
        first, *rest = run
        if name != PAUSE:
            found.append(
                (name, start_s + first * width_s, start_s + ((rest[-1] if rest else first) + 1) * width_s)
            )
    return found


def _summary(shown: Mapping[int, Sequence[Span]]) -> str:
    mine = next(iter(shown.values()))
    seconds: dict[str, float] = {}
    for phase, start, end in mine:
        seconds[phase] = seconds.get(phase, 0.0) + end - start
    return "rank 0 spent " + ", ".join(f"{value:.1f} s in {name}" for name, value in seconds.items())


def _colour(phase: str) -> str:
    return SERIES[PHASES.index(phase)] if phase in PHASES else SOFT


def _order(phase: str) -> tuple[int, str]:
    return (PHASES.index(phase) if phase in PHASES else len(PHASES), phase)
