"""Prints an evaluation in the terminal: tables of at most 100 columns for the public corpora."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from selfemo.evaluation.calibration import Calibration
from selfemo.evaluation.expression import ExpressionReport
from selfemo.evaluation.intervals import Interval
from selfemo.evaluation.matrix import Matrix
from selfemo.evaluation.metrics import NO_ANSWER, Classification
from selfemo.evaluation.results import CONTEXT_MEANING, Evaluation, never_predicted
from selfemo.evaluation.voting import VotingReport

NAMES = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "siou": "sIoU",
    "exact_match": "exact match",
}
SCORING = {"generate": "greedy generation", "likelihood": "likelihood of each label as the whole answer"}


def render(evaluation: Evaluation) -> Iterator[RenderableType]:
    """Yield everything that is printed, from top to bottom."""
    yield from header(evaluation)
    yield figures_table(evaluation)
    if evaluation.differences:
        yield differences_table(evaluation.differences)
    yield collapse_table(evaluation)
    for name, report in zip(model_names(evaluation), evaluation.models, strict=True):
        if report.voting:
            yield voting_table(name, report.voting)
        yield per_label_table(name, report.recognition.classification)
        yield confusion_table(name, report.recognition.classification)
        if report.calibration:
            yield calibration_table(name, report.calibration, report.confidence)
        if report.expression and report.read_by:
            yield expression_table(name, report.expression, str(report.read_by.path))


def header(evaluation: Evaluation) -> Iterator[Text]:
    """Name the evaluated turns, and the settings."""
    task = evaluation.task
    first = f" (the first {evaluation.limit})" if evaluation.limit else ""
    dialogues = len(set(task.dialogues))
    yield Text(
        f"{evaluation.corpus} {evaluation.split}: {len(task.turns)} turns{first} of {dialogues} "
        f"dialogues, {evaluation.corpus_path}"
    )
    yield Text(f"context {CONTEXT_MEANING}; scored by {SCORING[task.scoring]}")
    for name, report in zip(model_names(evaluation), evaluation.models, strict=True):
        settings = ", ".join(f"{field}={value}" for field, value in report.model.prompt_settings().items())
        yield Text(f"{name}: {report.model.path}, settings from {report.model.settings_from}: {settings}")


def model_names(evaluation: Evaluation) -> tuple[str, ...]:
    """Return short column headings for the models: paths are too long for a table."""
    return ("model", "against")[: len(evaluation.models)]


def figures_table(evaluation: Evaluation) -> Group:
    """Tabulate the main figures of each model, with intervals, beside the majority class."""
    level = evaluation.models[0].intervals[0].level
    title, table = _table(
        f"Emotion recognition, {level:.0%} intervals over dialogues",
        "figure",
        "majority",
        *model_names(evaluation),
    )
    majority = {"accuracy": evaluation.majority.accuracy, "weighted_f1": evaluation.majority.weighted_f1}
    majority["macro_f1"] = evaluation.majority.macro_f1
    for row in zip(*(report.intervals for report in evaluation.models), strict=True):
        baseline = majority.get(row[0].metric)
        table.add_row(
            NAMES[row[0].metric],
            "" if baseline is None else f"{baseline:.3f}",
            *(_interval(cell) for cell in row),
        )
    return Group(title, table)


def differences_table(differences: Sequence[Interval]) -> Group:
    """Tabulate the first model minus the one it is compared with, paired."""
    told = f"model minus against, paired bootstrap over dialogues ({differences[0].level:.0%})"
    title, table = _table(told, "figure", "difference", "excludes 0")
    for interval in differences:
        table.add_row(
            NAMES[interval.metric], _interval(interval, sign="+"), "yes" if interval.excludes_zero else "no"
        )
    return Group(title, table)


def voting_table(name: str, report: VotingReport) -> Group:
    """Show the vote over views, its difference to the plain reading, and the range of the views alone."""
    told = (
        f"{name}: voting over {len(report.views)} views ({', '.join(report.views)}) against the plain reading"
    )
    title, table = _table(told, "figure", "vote", "vote minus plain", "excludes 0", "views alone")
    for vote, difference in zip(report.intervals, report.differences, strict=True):
        alone = [getattr(view, vote.metric) for view in report.alone]
        table.add_row(
            NAMES[vote.metric],
            _interval(vote),
            _interval(difference, sign="+"),
            "yes" if difference.excludes_zero else "no",
            f"{min(alone):.3f} to {max(alone):.3f}",
        )
    return Group(title, table)


def collapse_table(evaluation: Evaluation) -> Group:
    """Tabulate signs of collapse, beside the gold annotation."""
    title, table = _table("Collapse", "figure", "gold", *model_names(evaluation))
    figures = [report.recognition.classification for report in evaluation.models]
    table.add_row(
        "label entropy (nats)", f"{evaluation.gold_entropy:.3f}", *(f"{f.label_entropy:.3f}" for f in figures)
    )
    table.add_row(
        "share of neutral",
        f"{evaluation.gold_neutral_share:.1%}",
        *(f"{f.neutral_share:.1%}" for f in figures),
    )
    table.add_row("format failures", "", *(f"{f.format_failure_rate:.1%}" for f in figures))
    table.add_row(
        "labels never predicted",
        "",
        *(", ".join(never_predicted(report)) or "none" for report in evaluation.models),
    )
    expressions = [report.expression for report in evaluation.models]
    if any(expressions):
        table.add_row(
            "distinct replies", "", *(f"{e.distinct_replies:.1%}" if e else "" for e in expressions)
        )
        table.add_row(
            "distinct word pairs", "", *(f"{e.distinct_bigrams:.1%}" if e else "" for e in expressions)
        )
    return Group(title, table)


def per_label_table(name: str, figures: Classification) -> Group:
    """Tabulate precision, recall and F1 by label."""
    title, table = _table(f"{name}: by label", "label", "precision", "recall", "F1", "gold", "predicted")
    for row in figures.per_label:
        table.add_row(
            row.label,
            f"{row.precision:.3f}",
            f"{row.recall:.3f}",
            f"{row.f1:.3f}",
            str(row.support),
            str(row.predicted),
        )
    return Group(title, table)


def confusion_table(name: str, figures: Classification) -> Group:
    """Tabulate turns by gold and predicted primary label."""
    labels = [row.label for row in figures.per_label]
    columns = [*(_short(label) for label in labels), NO_ANSWER]
    title = Text(f"{name}: gold (rows) read as (columns)", style="bold")
    return Group(title, Matrix("gold", labels, columns, figures.confusion))


def calibration_table(name: str, calibration: Calibration, confidence: str) -> Group:
    """Tabulate confidence and accuracy by bin; empty bins are left out."""
    told = f"{name}: calibration error {calibration.ece:.3f}; confidence: {confidence}"
    title, table = _table(told, "confidence", "turns", "mean", "right")
    for row in calibration.bins:
        if row.count:
            table.add_row(
                f"{row.low:.1f}-{row.high:.1f}",
                str(row.count),
                f"{row.confidence:.3f}",
                f"{row.accuracy:.3f}",
            )
    return Group(title, table)


def expression_table(name: str, report: ExpressionReport, recognizer: str) -> Group:
    """Tabulate replies by target emotion, as the recognizer read them."""
    failed = ", ".join(f"{gate} {count}" for gate, count in report.gate_failures) or "none"
    told = f"{name}: expression, {report.n} replies read by {recognizer}; failed gates: {failed}"
    title, table = _table(told, "target", "replies", "sIoU")
    for label, count, siou in report.per_target:
        table.add_row(label, str(count), f"{siou:.3f}")
    table.add_row("all", str(report.n), f"{report.siou:.3f}")
    table.add_row("read as the target first", "", f"{report.primary_hit_rate:.1%}")
    return Group(title, table)


def _interval(interval: Interval, sign: str = "") -> str:
    return escape(f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]")


def _short(label: str) -> str:
    return label if len(label) <= 8 else label[:7] + "."


def _table(title: str, *headings: str) -> tuple[Text, Table]:
    """Return a title and an empty table. Rich's own titles are broken at the table's width; this one is
    not.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    return Text(title, style="bold"), table
