"""Puts the page together.

Jinja escapes everything that a model or a user wrote; only our own charts, style and script are markup.
The page's content security policy forbids every request and every script but its own, so that nothing
in it can load or run.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from selfemo.common.files import new_file
from selfemo.corpora.labelled import LabelCounts
from selfemo.records.reading import RunRecords
from selfemo.report import formats
from selfemo.report.curves import curves
from selfemo.report.dialogues import MAX_DIALOGUES, dialogue_views
from selfemo.report.emotions import confusions, label_chart, label_rows
from selfemo.report.expression import emotion_rows
from selfemo.report.flywheel import flywheel_view
from selfemo.report.headlines import headlines, run_facts, stage_names
from selfemo.report.planned import planned_rows
from selfemo.report.timeline import time_line

PAGE_NAME = "report.html"
SECTIONS = (
    ("figures", "Figures"),
    ("curves", "Curves"),
    ("emotions", "Emotions"),
    ("time", "Time"),
    ("plan", "Planned and measured"),
    ("flywheel", "Flywheel"),
    ("dialogues", "Dialogues"),
)
"""Anchor, which is also the template's name, and heading."""


def render(records: RunRecords, refresh_s: int = 0, gpu: str = "", max_dialogues: int = MAX_DIALOGUES) -> str:
    """Render the page. With `refresh_s` it reloads itself every so many seconds.

    Raises:
        UserError: see planned_rows, flywheel_view and emotion_rows.
    """
    environment = Environment(
        loader=PackageLoader("selfemo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(formats, name) for name in ("share", "signed", "quantity", "duration", "hue")
    }
    environment.tests["hued"] = formats.is_hued
    style, script = (_resource(name) for name in ("style.css", "page.js"))
    labels, names = label_rows(records), stage_names(records)
    evaluations = records.of("eval")
    return environment.get_template("page.html").render(
        name=records.root.resolve().name,
        root=str(records.root),
        style=Markup(style),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        refresh_s=refresh_s,
        finished=records.summary is not None,
        status=_status(records),
        about=_about(records),
        sections=SECTIONS,
        stages=names,
        headlines=headlines(records),
        turns=evaluations[0]["n"] if evaluations else 0,
        split=records.config.evaluation.split,
        facts=run_facts(records),
        charts=curves(records),
        labels=labels,
        label_chart=label_chart(labels, names[-1]),
        confusions=confusions(records),
        timeline=time_line(records),
        planned=planned_rows(records, gpu),
        gpu=gpu,
        flywheel=flywheel_view(records),
        replies=emotion_rows(records),
        flywheel_enabled=records.config.flywheel.enabled,
        dialogues=dialogue_views(records.dialogues, max_dialogues),
        dialogues_recorded=len(records.dialogues),
    )


def write_page(path: Path, text: str) -> None:
    """Write the page under a temporary name, then rename it, so that an open browser never sees half of it.

    Raises:
        UserError: the file cannot be written.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _status(records: RunRecords) -> str:
    if records.summary is not None:
        return "finished"
    return f"{len(records.of('iteration'))} of {records.config.iterations} iterations"


def _about(records: RunRecords) -> list[tuple[str, str]]:
    config, summary = records.config, records.summary
    about = [
        (
            "model",
            config.model.path
            or f"initialised, {config.model.num_layers} layers of width {config.model.hidden_size}",
        )
    ]
    if summary is not None:
        context = f"context {config.parallel.context} × " if config.parallel.context > 1 else ""
        sizes = (
            f"tensor {summary['tensor_parallel']} × pipeline {summary['pipeline_parallel']} × "
            f"{context}data {summary['data_parallel']}"
        )
        about += [
            ("corpus", summary["corpus"]),
            ("processes", f"{summary['world_size']} = {sizes}, {summary['backend']}"),
            ("trainer", summary["trainer"]),
            ("engine", summary["engine"]),
            ("took", formats.duration(summary["seconds"]["total"])),
        ]
    else:
        about += [
            ("corpus", config.corpus.name),
            ("parallel", f"tensor {config.parallel.tensor} × pipeline {config.parallel.pipeline}"),
        ]
    if records.training_dialogues is not None:
        about.append(("training", str(LabelCounts(**records.training_dialogues["counts"]))))
    return [*about, ("algorithm", config.algorithm.loss), ("seed", str(config.seed))]


def _resource(name: str) -> str:
    return (files("selfemo.report") / "templates" / name).read_text(encoding="utf-8")
