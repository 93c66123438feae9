"""Renders a study: a Markdown table per split, and one figure of averages and differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfemo.common.files import new_file
from selfemo.evaluation.intervals import METRICS, Interval
from tools.study.answers import SplitAnswers
from tools.study.plan import START, StudyPlan
from tools.study.results import Difference, VariantFigures, differences, figures_of

METRIC_TITLES = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1"}


def render_split(answers: SplitAnswers, plan: StudyPlan) -> str:
    """Return the split's two tables: figures by variant, differences by baseline.

    Figures are in percent, intervals of 95%.
    """
    names = variant_names(plan)
    figures, against = figures_of(answers, names), differences(answers, names, plan.baselines)
    lines = [
        f"### {answers.corpus} {answers.split}: {len(answers.gold)} turns, "
        f"{len(set(answers.dialogues))} dialogues",
        "",
    ]
    lines += [*_figures_table(figures), ""]
    for baseline in plan.baselines:
        lines += [f"Difference to `{baseline}` (**bold**: the interval excludes 0):", ""]
        lines += [
            *_difference_table([difference for difference in against if difference.baseline == baseline]),
            "",
        ]
    return "\n".join(lines)


def describe_variants(plan: StudyPlan) -> str:
    """Describe each variant in a line, with the overrides that make it."""
    rows = [
        "| variant | what | settings |",
        "| --- | --- | --- |",
        f"| `{START}` | the SFT start | {_settings(plan.start)} |",
    ]
    for variant in plan.variants:
        settings = f"(self-play settings) {_settings(variant.overrides)}".rstrip()
        rows.append(f"| `{variant.name}` | {variant.says} | {settings} |")
    return "\n".join(
        [
            *rows,
            "",
            f"Self-play settings: {_settings(plan.self_play)}. Seeds {', '.join(map(str, plan.seeds))}.",
        ]
    )


def variant_names(plan: StudyPlan) -> list[str]:
    """Return the names of the start and of every variant, in order."""
    return [START, *(variant.name for variant in plan.variants)]


def plot_split(answers: SplitAnswers, plan: StudyPlan, path: Path) -> None:
    """Draw weighted and macro F1 of every variant with intervals, and its difference from the first baseline.

    The suffix of `path` decides the format.
    """
    from matplotlib.figure import Figure

    names = variant_names(plan)
    figures = figures_of(answers, names)
    against = differences(answers, names, plan.baselines[:1])
    figure = Figure(figsize=(11, 1.4 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots(1, 2)
    figure.suptitle(
        f"{answers.corpus} {answers.split}, {len(plan.seeds)} seeds, 95% intervals over seeds and dialogues"
    )
    for metric, offset, colour in (("weighted_f1", -0.14, "#2563a8"), ("macro_f1", 0.14, "#c2571a")):
        _draw(
            axes[0],
            names,
            {row.variant: _metric(row.intervals, metric) for row in figures},
            offset,
            colour,
            METRIC_TITLES[metric],
        )
        _draw(
            axes[1],
            names,
            {row.variant: _metric(row.intervals, metric) for row in against},
            offset,
            colour,
            METRIC_TITLES[metric],
        )
    axes[0].set_xlabel("percent")
    axes[1].set_xlabel(f"difference to {plan.baselines[0]}, percentage points")
    axes[1].axvline(0.0, color="0.5", linewidth=1)
    axes[1].set_yticklabels([])
    axes[0].legend(loc="best")
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120)  # its suffix decides the format


def _figures_table(figures: Sequence[VariantFigures]) -> list[str]:
    lines = [
        "| variant | accuracy | weighted F1 | macro F1 | sIoU | share of neutral | label entropy, "
        "nats | expression sIoU |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in figures:
        cells = [_percent(_metric(row.intervals, name)) for name in METRICS]
        expression = "-" if row.expression is None else f"{row.expression:.3f}"
        lines.append(
            f"| `{row.variant}` | {' | '.join(cells)} | {row.siou:.3f} | {row.neutral_share:.1%} | "
            f"{row.label_entropy:.2f} | {expression} |"
        )
    return lines


def _difference_table(rows: Sequence[Difference]) -> list[str]:
    lines = ["| variant | accuracy | weighted F1 | macro F1 |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = [_percent(_metric(row.intervals, name), signed=True) for name in METRICS]
        lines.append(f"| `{row.variant}` | {' | '.join(cells)} |")
    return lines


def _percent(interval: Interval, signed: bool = False) -> str:
    sign = "+" if signed else ""
    value = f"{100 * interval.value:{sign}.1f}"
    shown = f"**{value}**" if signed and interval.excludes_zero else value
    return f"{shown} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"


def _metric(intervals: Sequence[Interval], name: str) -> Interval:
    return next(interval for interval in intervals if interval.metric == name)


def _settings(overrides: Sequence[str]) -> str:
    return " ".join(f"`{override}`" for override in overrides)


def _draw(
    axes: Any, names: Sequence[str], intervals: dict[str, Interval], offset: float, colour: str, label: str
) -> None:
    places = [i for i, name in enumerate(names) if name in intervals]
    shown = [intervals[names[i]] for i in places]
    values = [100 * interval.value for interval in shown]
    errors = [[100 * (i.value - i.low) for i in shown], [100 * (i.high - i.value) for i in shown]]
    axes.errorbar(
        values,
        [place + offset for place in places],
        xerr=errors,
        fmt="o",
        color=colour,
        capsize=3,
        label=label,
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
