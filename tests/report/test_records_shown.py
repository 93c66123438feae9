"""Test what the report reads: half-written, damaged and growing records, and where the command writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from selfemo.commands import report as commands
from selfemo.common.errors import UserError
from selfemo.config.schema import RunConfig
from selfemo.records.directory import RunDirectory
from selfemo.records.reading import read_run
from selfemo.report.page import render
from selfemo.report.planned import planned_rows
from selfemo.run.journal import Journal
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
        ("metrics.jsonl", '"kl": ', '"kl": [], "was": '),
        ("metrics.jsonl", '"per_label_f1": {', '"per_label_f1": [{}], "was": {'),
        ("metrics.jsonl", '"per_label_f1": {', '"per_label_f1": {"more": 1, '),
        ("metrics.jsonl", '"n": 100', '"n": 0'),
        ("metrics.jsonl", '"confusion": [[', '"readings": [["joy"]], "confusion": [['),
        ("metrics.jsonl", '"seconds": {"rollout": ', '"seconds": {"roll": '),
        ("metrics.jsonl", '"received_bytes": 123', '"received_bytes": "123"'),
        ("metrics.jsonl", '"ranks": {"0"', '"ranks": {"1.0"'),
        ("metrics.jsonl", '["setup", 0', '["setup", 1e9'),
        ("metrics.jsonl", '"optimizer": ', '"optimiser": '),
        ("metrics.jsonl", '"event": "sync"', '"event": ["sync"]'),
        ("samples.jsonl", '"candidates": [', '"candidates": [], "were": ['),
        ("samples.jsonl", '"turn": 0', '"turn": 99'),
        ("samples.jsonl", '"seed_turns": ', '"seed_turns": 1000'),
        ("samples.jsonl", '"total": ', '"total": "1", "was": '),
        ("summary.json", '"accuracy": 0.4', '"accuracy": "0.4"'),
        ("summary.json", '"total": ', '"all": '),
        ("samples.jsonl", '"failed_gates": ', '"gates": '),
        ("summary.json", '"world_size": ', '"sizes": '),
        ("summary.json", '"trainer": ', '"trainer": '.removesuffix(": ")),
        ("training_dialogues.json", '"labelled_turns": ', '"turns": '),
        ("training_dialogues.json", '{"labelled_share"', '[{"labelled_share"'),
        ("training_dialogues.json", '{"labelled_dialogues"', '{"more": 1, "labelled_dialogues"'),
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


@pytest.mark.parametrize("figure", ["NaN", "-Infinity", "1e999", "1e101", "9" * 19, '"\\ud800"'])
@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_what_no_run_writes_is_one_line(tmp_path: Path, name: str, figure: str):
    """A figure that is not finite, or a text that cannot be written to the page."""
    run = make_run(tmp_path / "run")
    lines = (run / name).read_text().splitlines()
    (run / name).write_text("\n".join([lines[0].replace("{", f'{{"more": {figure}, ', 1), *lines[1:], ""]))
    with pytest.raises(UserError, match=rf"{name}.*not JSON"):
        read_run(run)


def test_a_resume_names_a_damaged_record(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "sync"}\n')
    world = SimpleNamespace(layout=SimpleNamespace(is_main=True))
    journal = Journal(RunConfig(), RunDirectory(tmp_path), None, world)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"metrics.jsonl:1: damaged \(version: field required\)"):
        journal.resume({"total": 1.0})


def test_odd_records_have_a_page(tmp_path: Path):
    """Show names that matplotlib would take for formulas, figures at their ends, and missing parts."""
    run = make_run(tmp_path / "run")
    text = (run / "metrics.jsonl").read_text().replace('"reward_expression"', '"reward_$x^$"')
    text = text.replace('"accuracy": 0.5', '"accuracy": 1.0000000000000002').replace('"sync", 1', '"$_$", 1')
    text = text.replace('"rollout": 20.0', '"rollout": 0.0').replace('"siou": 0.48', '"siou": null')
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        if event["event"] == "iteration":
            event["flywheel"]["dropped"] |= {"_$a": 1, "long" * 100: 1}
        if event["event"] == "eval" and event["stage"] == "final":
            event["per_label_f1"] = {f"${label}$": 0.5 for label in event["per_label_f1"]}
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    page = render(read_run(run))
    assert "$x^$" in page
    assert "_$a" in page
    assert f">{'long' * 14}lon…<" in page


@pytest.mark.parametrize(
    ("world_size", "told"),
    [(1, "summary.json: world_size=1"), (0, "summary.json: world_size=0"), (4, "")],
)
def test_a_world_that_the_configuration_cannot_have_is_one_line(tmp_path: Path, world_size: int, told: str):
    run = make_run(tmp_path / "run")
    text = (run / "summary.json").read_text().replace('"world_size": 2', f'"world_size": {world_size}')
    (run / "summary.json").write_text(text)
    if not told:
        metrics = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(metrics.replace('"1": {"weights"', '"9": {"weights"'))
        told = "metrics.jsonl: memory of rank 9, expected ranks below 4"
    with pytest.raises(UserError, match=told):
        planned_rows(read_run(run))


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
