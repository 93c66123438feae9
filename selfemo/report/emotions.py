"""Shows how well each emotion is read: F1 by label and confusion matrices, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from selfemo.evaluation.metrics import NO_ANSWER
from selfemo.records.reading import Json, RunRecords
from selfemo.report.charts import INK, SERIES, SIZE_IN, SOFT, Chart, as_text, legend, make_chart
from selfemo.report.headlines import STAGES, stage_names


@dataclass(frozen=True)
class LabelRow:
    """One label's row over the stages."""

    label: str
    support: int | None
    """Turns whose gold primary label this is; None if no confusion matrix was recorded."""
    f1: tuple[float | None, ...]
    """F1 in the order of STAGES; None for a stage that has not been evaluated."""

    @property
    def by_play(self) -> float | None:
        """Change of F1 from the SFT model to the final one."""
        _, sft, final = self.f1
        return None if sft is None or final is None else final - sft


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix."""

    count: int
    share: float
    """Share of the row's gold turns."""
    correct: bool


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of one stage: rows gold, columns predicted."""

    stage: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def label_rows(records: RunRecords) -> list[LabelRow]:
    """Return the rows of the per-label table, most frequent gold label first."""
    evaluations = [records.evaluation(stage) for stage in STAGES]
    first = next((e for e in evaluations if e is not None), None)
    if first is None:
        return []
    support = (
        {label: sum(row) for label, row in zip(first["per_label_f1"], first["confusion"])}
        if "confusion" in first
        else {}
    )
    rows = [
        LabelRow(
            label,
            support.get(label),
            tuple(None if e is None else e["per_label_f1"].get(label) for e in evaluations),
        )
        for label in first["per_label_f1"]
    ]
    return sorted(rows, key=lambda row: -(row.support or 0))


def label_chart(rows: Sequence[LabelRow], algorithm: str) -> Chart | None:
    """Draw F1 after SFT and after `algorithm`, with a line per label between the two.

    Returns None before the final evaluation.
    """
    pairs = [
        (row.label, row.f1[1], row.f1[2]) for row in rows if row.f1[1] is not None and row.f1[2] is not None
    ]
    if not pairs:
        return None

    def draw(axes: Axes) -> None:
        heights = range(len(pairs), 0, -1)
        before, after = [p[1] for p in pairs], [p[2] for p in pairs]
        axes.grid(visible=False, axis="y")
        axes.hlines(heights, before, after, color=SOFT, linewidth=2)
        axes.scatter(
            before,
            heights,
            s=44,
            facecolors="none",
            edgecolors=SERIES[0],
            linewidths=1.6,
            label="after SFT",
            zorder=3,
        )
        axes.scatter(after, heights, s=36, color=SERIES[1], label=f"after {algorithm}", zorder=4)
        axes.set_yticks(heights, [as_text(p[0]) for p in pairs], color=INK)
        axes.set_xlim(-0.03, 1.0)
        axes.set_ylim(0.4, len(pairs) + 0.6)
        axes.set_xlabel("F1")
        legend(axes)

    summary = "; ".join(f"{label} {before:.2f} to {after:.2f}" for label, before, after in pairs)
    return make_chart("F1 by label", draw, summary, (SIZE_IN[0], 0.75 + 0.24 * len(pairs)))


def confusions(records: RunRecords) -> list[Confusion]:
    """Return the matrix of every evaluation that recorded one."""
    found = []
    for stage, name in zip(STAGES, stage_names(records), strict=True):
        evaluation = records.evaluation(stage)
        if evaluation is not None and "confusion" in evaluation:
            found.append(_confusion(name, evaluation))
    return found


def _confusion(stage: str, evaluation: Json) -> Confusion:
    labels = list(evaluation["per_label_f1"])
    rows = []
    for label, counts in zip(labels, evaluation["confusion"], strict=True):
        total = max(1, sum(counts))
        rows.append(
            (
                label,
                tuple(
                    Cell(n, n / total, name == label)
                    for name, n in zip([*labels, NO_ANSWER], counts, strict=True)
                ),
            )
        )
    return Confusion(stage, (*labels, NO_ANSWER), tuple(rows))
