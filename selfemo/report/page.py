"""Renders the report. Jinja escapes everything a model wrote; only our own SVG is marked as markup."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from selfemo.report.charts import line_chart
from selfemo.report.records import RunRecords

_CURVES = (
    ("KL to the reference", ("kl",)),
    ("Entropy", ("entropy",)),
    ("Clipped share", ("clipped_share",)),
    ("Largest logprob gap, engine to trainer", ("logprob_gap_max",)),
)
_HEADLINES = ("accuracy", "weighted_f1", "macro_f1", "siou", "format_failure_rate")


def render(records: RunRecords, refresh_s: int = 0) -> str:
    """The page; with `refresh_s` it asks the browser to load it again after so many seconds."""
    environment = Environment(loader=PackageLoader("selfemo.report", "."), autoescape=True, undefined=StrictUndefined)
    evaluations = records.of("eval")
    return environment.get_template("report.html").render(
        records=records,
        refresh_s=refresh_s,
        evaluations=evaluations,
        headlines=[(name, [e[name] for e in evaluations]) for name in _HEADLINES],
        labels=sorted(evaluations[0]["per_label_f1"]) if evaluations else [],
        charts=[Markup(svg) for svg in _charts(records.of("iteration"))],
        iterations=records.of("iteration"),
    )


def write_page(path: Path, text: str) -> None:
    """Write the page under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _charts(iterations: list[dict[str, Any]]) -> list[str]:
    if not iterations:
        return []
    steps = [record["iteration"] for record in iterations]
    rewards = [name for name in iterations[0] if name.startswith("reward") and all(name in r for r in iterations)]
    curves = (("Reward and its components", tuple(rewards)), *_CURVES)
    charts = [line_chart(title, {n.removeprefix("reward_"): [r[n] for r in iterations] for n in names}, steps) for title, names in curves]
    phases = {name: [r["seconds"][name] for r in iterations] for name in iterations[0]["seconds"]}
    return [*charts, line_chart("Seconds by phase (rank 0)", phases, steps)]
