"""Test the table of replies by emotion: asked and kept as the flywheel recorded them, F1 as evaluated."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.commands.flywheel import app
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.records.reading import read_run
from selfemo.report.expression import emotion_rows
from selfemo.report.page import render
from tests.helpers.made_run import make_run
from tests.helpers.scripted import LABELS

RARE = LABELS[1]
"""A label whose F1 differs from all others' in `measured`."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run that keeps three replies, and in which self-play brings RARE from 0.125 to 0.375."""
    run = make_run(tmp_path_factory.mktemp("expression") / "run")
    _keep_replies(run / "flywheel.sqlite", 3)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "eval":
            event["per_label_f1"][RARE] = {"start": 0.0, "sft": 0.125, "final": 0.375}[event["stage"]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def _keep_replies(path: Path, count: int) -> None:
    """Add copies of dropped replies as kept ones, and one that is kept for another reason."""
    with closing(FlywheelStore(path, writable=True)) as store:
        dropped = list(store.find(Filter(kept=False, role="responder"), count + 1))
        reasons = ["expression"] * count + ["another"]
        store.append(
            [
                replace(record, record_id=store.last_id() + 1 + i, iteration=100, kept=True, reason=reason)
                for i, (record, reason) in enumerate(zip(dropped, reasons, strict=True))
            ]
        )


def test_replies_are_counted_by_the_emotion_they_were_written_for(measured: Path):
    """Count the records one by one: a dropped reply was asked for, and only expression counts as kept."""
    with closing(FlywheelStore(measured / "flywheel.sqlite")) as store:
        replies = list(store.find(Filter(role="responder")))
    asked = Counter(record.target[0] for record in replies)
    kept = Counter(record.target[0] for record in replies if record.reason == "expression")
    rows = emotion_rows(read_run(measured))
    assert {row.label: row.asked for row in rows if row.asked} == dict(asked)
    assert {row.label: row.kept for row in rows if row.kept} == dict(kept)
    assert sum(kept.values()) == 3 < sum(record.kept for record in replies) < sum(asked.values())
    assert [row.asked for row in rows] == sorted((row.asked for row in rows), reverse=True)


def test_a_reply_that_a_teacher_read_counts_for_the_emotion_it_was_written_for(tmp_path: Path):
    run = make_run(tmp_path / "run")
    with closing(FlywheelStore(run / "flywheel.sqlite", writable=True)) as store:
        record = next(iter(store.find(Filter(role="recognizer"))))
        readings = [(True, "read back", (RARE,)), (True, "read back", (RARE,)), (False, "read otherwise", ())]
        changed = [
            replace(record, record_id=store.last_id() + n, iteration=100 + n, kept=k, reason=r, labels=labels)
            for n, (k, r, labels) in enumerate(readings, 1)
        ]
        store.append(changed)
    rows = emotion_rows(read_run(run))
    assert {row.label: row.read_back for row in rows if row.read_back} == {RARE: 2}


def test_each_emotion_stands_with_its_own_f1(measured: Path):
    rows = {row.label: row for row in emotion_rows(read_run(measured))}
    assert set(rows) == set(LABELS)
    assert (rows[RARE].before, rows[RARE].after, rows[RARE].change) == (0.125, 0.375, 0.25)
    assert rows[LABELS[0]].change == pytest.approx(-0.02)


def test_a_live_run_has_no_final_f1(live: Path):
    rows = emotion_rows(read_run(live))
    assert {(row.before, row.after, row.change) for row in rows} == {(0.5, None, None)}


def test_the_page_shows_the_table_where_replies_were_asked_for(measured: Path, tmp_path: Path):
    page = render(read_run(measured))
    table = page.split("Replies by emotion</caption>")[1].split("</table>")[0]
    row = next(part for part in table.split("<tr>") if f">{RARE}</span>" in part)
    assert all(figure in row for figure in ("0.125", "0.375", "+0.250"))
    bare = make_run(tmp_path / "bare")
    (bare / "flywheel.sqlite").unlink()
    assert emotion_rows(read_run(bare)) == []
    assert "Replies by emotion" not in render(read_run(bare))


def test_the_command_prints_the_same_table(measured: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    row = next(row for row in emotion_rows(read_run(measured)) if row.label == RARE)
    for place in (measured, measured / "flywheel.sqlite"):
        result = CliRunner().invoke(app, ["stats", str(place)])
        assert result.exit_code == 0, result.output
        (line,) = (line for line in result.output.splitlines() if RARE in line)
        cells = [cell.strip() for cell in line.strip("│┃ ").split("│")]
        assert cells == [RARE, str(row.asked), str(row.kept), "0", "0.125", "0.375", "+0.250"]
