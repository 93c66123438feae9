"""Test what the report reads: half-written, damaged and growing records, and where the command writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.commands import report as commands
from selfemo.common.errors import UserError
from selfemo.records.reading import read_run
from selfemo.report.page import render
from tests.helpers.made_run import make_run


def test_half_a_line_is_left_for_the_next_reading(live: Path):
    assert len(read_run(live).of("iteration")) == 5


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '{"step": 1}', "\udcff"])
def test_a_broken_record_is_named_with_its_line(tmp_path: Path, line: str):
    run = make_run(tmp_path / "run")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_bytes((text + line + "\n").encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"metrics.jsonl:{text.count(chr(10)) + 1}: "):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("metrics.jsonl", '"reward": ', '"reward": "much", "was": '),
        ("metrics.jsonl", '"kl": ', '"kl": "none", "was": '),
        ("metrics.jsonl", '"per_label_f1": {', '"per_label_f1": [{}], "was": {'),
        ("samples.jsonl", '"failed_gates": ', '"gates": '),
        ("summary.json", '"world_size": ', '"sizes": '),
        ("summary.json", '"trainer": ', '"trainer": '.removesuffix(": ")),
        ("training_dialogues.json", '"labelled_turns": ', '"turns": '),
        ("training_dialogues.json", '{"labelled_share"', '[{"labelled_share"'),
    ],
)
def test_a_damaged_record_is_one_line_that_names_it(tmp_path: Path, name: str, old: str, new: str):
    run = make_run(tmp_path / "run")
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new, 1))
    line = f":{text[: text.index(old)].count(chr(10)) + 1}" if name.endswith("jsonl") else ""
    with pytest.raises(UserError, match=rf"{name}{line}: damaged \("):
        read_run(run)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no config.yaml"):
        read_run(tmp_path)


def test_a_run_that_has_recorded_nothing_has_a_page(tmp_path: Path):
    run = make_run(tmp_path / "run", finished=False)
    for name in ("metrics.jsonl", "samples.jsonl", "flywheel.sqlite"):
        (run / name).unlink()
    assert "No evaluation has been recorded yet." in render(read_run(run))


@pytest.mark.long
def test_watch_follows_a_run_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Follow a live run: its page reloads itself; the finished one does not, and has the last record."""
    whole = make_run(tmp_path / "whole")
    run = make_run(tmp_path / "run", finished=False)
    seen: list[str] = []

    def wait(seconds: float) -> None:
        seen.append((run / "report.html").read_text())
        if len(seen) == 1:
            (run / "metrics.jsonl").write_bytes((whole / "metrics.jsonl").read_bytes())
        if len(seen) == 2:
            (run / "summary.json").write_bytes((whole / "summary.json").read_bytes())

    monkeypatch.setattr(commands.time, "sleep", wait)
    result = CliRunner().invoke(_app(), [str(run), "--watch"])
    assert result.exit_code == 0, result.output
    assert len(seen) == 2
    assert all('data-refresh-s="5"' in text for text in seen)
    assert "5 of 5 iterations" in seen[0]
    assert seen[0].count("<caption>Confusions") == 2
    assert seen[1].count("<caption>Confusions") == 3
    last = (run / "report.html").read_text()
    assert "data-refresh-s" not in last
    assert "finished" in last
    assert not [p for p in run.iterdir() if p.name.startswith(".")]


def test_the_command_writes_where_it_is_told(finished: Path, tmp_path: Path):
    result = CliRunner().invoke(
        _app(), [str(finished), "--output", str(tmp_path / "out.html"), "--dialogues", "1"]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.html").read_text().count('class="dialogue" id="dialogue-') == 1
    assert json.loads((finished / "summary.json").read_text())["world_size"] == 2


def _app():
    import typer

    app = typer.Typer()
    app.command()(commands.report)
    return app
