"""Test a new figure of an iteration's record.

It appears in TensorBoard, and in the report if a curve names it. The curve has gaps where the
record lacks the figure.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfemo.records.reading import read_run
from selfemo.report.curves import curves
from selfemo.report.page import render
from selfemo.run import scalars
from selfemo.run.scalars import scalars_of
from selfemo.run.trackers import Tracking
from tests.helpers.made_run import ITERATIONS, make_run
from tests.run.test_tracking import tensorboard_points

SPREADS = {iteration: None if iteration == 1 else iteration / 8 for iteration in range(ITERATIONS)}
"""The second value was not finite, which a record writes as null."""


def recorded(run: Path) -> Path:
    """Make a run whose journal has one figure more."""
    metrics = make_run(run) / "metrics.jsonl"
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    more = [
        event | ({"advantage_std": SPREADS[event["iteration"]]} if event["event"] == "iteration" else {})
        for event in events
    ]
    metrics.write_text("".join(json.dumps(event) + "\n" for event in more))
    return run


def test_the_reports_page_has_the_curve(spread_curve: str, run_dir: Path):
    records = read_run(recorded(run_dir))
    chart = next(chart for chart in curves(records) if chart.title == spread_curve)
    assert chart.summary == "standard deviation from 0 to 0.5"
    assert f"<figcaption>{spread_curve}</figcaption>" in render(records)


def test_the_curve_of_a_run_that_did_not_record_it_is_left_out(spread_curve: str, run_dir: Path):
    assert spread_curve not in [chart.title for chart in curves(read_run(make_run(run_dir)))]


def test_tensorboard_has_the_scalar(run_dir: Path):
    records = read_run(recorded(run_dir))
    tracking = Tracking(run_dir / "metrics.jsonl", records.config)
    tracking.log(records.of("iteration")[-1])
    tracking.close()
    expected = {iteration: spread for iteration, spread in SPREADS.items() if spread is not None}
    assert dict(tensorboard_points(run_dir)["policy/advantage_std"]) == expected


def test_an_evaluation_after_another_stage_has_its_place_on_the_axis(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scalars, "STAGES", ("start", "sft", "distilled", "final"))
    records = read_run(make_run(run_dir))
    places = [
        scalars_of({"event": "eval", "stage": stage, "accuracy": 0.5})
        for stage in ("sft", "distilled", "final")
    ]
    assert [place.step for place in places if place] == [1, 2, 3]
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(records.of("eval")[1] | {"stage": "distilled"}) + "\n")
    assert "change by SELF-GRPO" in render(read_run(run_dir))
