"""Test the scaling study: rows from a run's records and from plans, and the cost of the project's
own parts.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from selfemo.config.checks import initialised_architecture
from selfemo.config.layout import Layout
from selfemo.config.load import as_yaml, load_config
from selfemo.models.architecture import hf_config
from selfemo.planning.sync import sync_bytes
from tools.scaling.measured import CONFIG, overrides, row_of
from tools.scaling.output import draw, write_study
from tools.scaling.parts import PARTS, REPEATED, SHARED, OwnCost, PartCost, growth, measure_parts, own_cost
from tools.scaling.planned import SIZES, plan_studies
from tools.scaling.rows import Row, in_order, with_efficiency

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {"algorithm", "model", "policy_lag", "mean_tokens", "max_tokens", "gpus", "groups", "samples"} | {
    "generation_layout",
    "training_layout",
    "tokens_per_s_per_gpu",
    "step_s",
}


@pytest.fixture(scope="module")
def planned() -> list[Row]:
    return plan_studies(ROOT / "examples" / "configs" / "qwen3_8b.yaml", "qwen3-8b", OwnCost(50.0, 6.0))


def finished_run(directory: Path, processes: int) -> Path:
    """Make the records that `row_of` reads, with figures made by hand: iteration 0 warms up."""
    config = load_config(ROOT / CONFIG, overrides(processes, 16, directory))
    architecture = initialised_architecture(config.model)
    (directory / "model-initial").mkdir(parents=True)
    (directory / "model-initial" / "config.json").write_text(json.dumps(hf_config(architecture)))
    (directory / "model").mkdir()
    (directory / "model" / "model.safetensors").write_bytes(bytes(4000))
    (directory / "config.yaml").write_text(as_yaml(config))
    (directory / "load.json").write_text('{"before": 0.4, "after": 2.1}')
    lengths = {"completion_tokens_max_recognizer": 12, "completion_tokens_max_responder": 32}
    records = [
        {"event": "sync", "path": "checkpoint", "received_bytes": 1000},
        *(
            {
                "event": "iteration",
                "tokens": 600,
                "samples": 60,
                "groups": 8,
                **lengths,
                "seconds": {"rollout": rollout, "reward": 0.5, "train": 2.0, "sync": 0.5},
            }
            for rollout in (90.0, 3.0, 5.0, 4.0)
        ),
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


def test_a_row_holds_the_medians_of_a_run_without_its_warm_up(tmp_path: Path) -> None:
    row = row_of(finished_run(tmp_path / "run", 4), 4, "strong")
    assert (row.kind, row.gpus, row.samples, row.mean_tokens, row.max_tokens) == ("measured", 4, 60, 10.0, 32)
    assert (row.generate_s, row.train_s, row.sync_s, row.other_s, row.logprob_s) == (4.0, 2.0, 0.5, 0.5, None)
    assert row.step_s == 7.0
    assert row.tokens_per_s_per_gpu == pytest.approx(600 / 7.0 / 4)
    assert (row.training_layout, row.generation_layout) == ("TP2 DP2", "TP1 x 4")
    assert row.sync_bytes == 2000  # two replicas of a thousand
    architecture = initialised_architecture(load_config(ROOT / CONFIG).model)
    assert (
        row.planned_sync_bytes
        == sync_bytes(architecture, Layout(1, 4, tensor=2), "float32", "float32").checkpoint
    )
    assert "load average 0 before, 2 after" in row.note


def test_more_processes_than_cores_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.scaling.measured.psutil.cpu_count", lambda logical: 2)
    assert "4 processes oversubscribe 2 cores" in row_of(finished_run(tmp_path / "four", 4), 4, "weak").note
    assert "oversubscribe" not in row_of(finished_run(tmp_path / "two", 2), 2, "weak").note


def test_planned_curves_reach_4096_gpus_in_both_studies(planned: list[Row]) -> None:
    for study in ("strong", "weak"):
        rows = [row for row in planned if row.study == study]
        assert [row.gpus for row in rows] == list(SIZES)
        assert max(SIZES) == 4096
        assert len({row.samples for row in rows}) == (1 if study == "strong" else len(SIZES))
        assert all(row.kind == "planned" and "never run" in row.note for row in rows)
        for row in rows:
            parts = row.generate_s + (row.logprob_s or 0.0) + row.train_s + row.sync_s + row.other_s
            assert row.step_s == pytest.approx(parts)


def test_what_every_rank_repeats_ends_weak_scaling_and_what_ranks_share_does_not(planned: list[Row]) -> None:
    """Compare replicated with shared work on 4,096 GPUs.

    4.7 million samples at 50 us on every rank are minutes that no further GPU removes; 6 us shared
    are nothing.
    """
    without = plan_studies(
        ROOT / "examples" / "configs" / "qwen3_8b.yaml", "qwen3-8b", OwnCost(), sizes=(4096,)
    )
    last, free = (next(r for r in rows if (r.study, r.gpus) == ("weak", 4096)) for rows in (planned, without))
    assert last.step_s - free.step_s == pytest.approx(last.samples * (50e-6 + 6e-6 / 4096))


def test_efficiency_is_relative_to_the_smallest_of_the_same_study_and_kind(planned: list[Row]) -> None:
    measured = [
        replace(planned[0], kind="measured", gpus=n, tokens_per_s_per_gpu=rate)
        for n, rate in ((1, 10.0), (2, 8.0))
    ]
    rows = with_efficiency([*measured, *planned])
    assert [row.efficiency for row in rows if row.kind == "measured"] == [1.0, 0.8]
    assert [row.efficiency for row in rows if row.kind == "planned" and row.gpus == 8] == [1.0, 1.0]


def test_the_files_hold_every_row_and_say_what_was_measured(planned: list[Row], tmp_path: Path) -> None:
    rows = with_efficiency(
        [replace(planned[0], kind="measured", gpus=1, hardware="CPU, 2 cores", note="here"), *planned]
    )
    parts = [PartCost("reward", 10, 1e-4), PartCost("reward", 100, 1e-3)]
    written = write_study(tmp_path, rows, parts, {"command": "c", "date": "d", "machine": "m"})
    assert sorted(path.name for path in written) == [
        "parts.csv",
        "study.csv",
        "study.json",
        "study.png",
        "study.svg",
    ]
    # No temporary is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    table = list(csv.DictReader((tmp_path / "study.csv").open()))
    assert set(table[0]) >= COLUMNS
    assert [row["kind"] for row in table] == ["measured"] + ["planned"] * len(planned)
    document = json.loads((tmp_path / "study.json").read_text())
    assert document["rows"] == [asdict(row) for row in in_order(rows)]
    assert document["parts_growth"] == {"reward": pytest.approx(1.0)}
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "PLANNED strong" in (tmp_path / "study.svg").read_text()
        or "<svg" in (tmp_path / "study.svg").read_text()
    )


def test_the_plot_tells_measured_from_planned(planned: list[Row]) -> None:
    measured = [replace(planned[0], kind="measured", gpus=n, hardware="CPU, 2 cores") for n in (1, 2)]
    figure = draw([*measured, *planned], [])
    for axes in figure.axes[:2]:
        styles = {
            line.get_label().split()[0]: (line.get_linestyle(), line.get_markerfacecolor())
            for line in axes.lines
        }
        assert set(styles) == {"MEASURED", "PLANNED"}
        assert styles["MEASURED"][0] == "-"
        assert styles["PLANNED"] == ("--", "none")
        assert "planned, not run" in [text.get_text() for text in axes.texts]


def test_the_plot_shows_every_part(planned: list[Row]) -> None:
    figure = draw(planned, [PartCost(part, samples, 1e-3) for part in PARTS for samples in (10, 100)])
    assert [line.get_label() for line in figure.axes[3].lines] == list(PARTS)
    assert len({line.get_color() for line in figure.axes[3].lines}) == len(PARTS)


def test_growth_is_cost_per_sample_against_a_tenth_of_the_samples() -> None:
    costs = [PartCost("linear", n, n * 1e-6) for n in (10, 100, 1000)] + [
        PartCost("square", n, n * n * 1e-6) for n in (10, 100, 1000)
    ]
    assert growth(costs) == {"linear": pytest.approx(1.0), "square": pytest.approx(10.0)}
    parts = [
        PartCost("reward", 10, 1e-4),
        PartCost("rewards of all", 10, 1e-5),
        PartCost("deal", 10, 2e-5),
        PartCost("pack", 10, 9.0),
    ]
    cost = own_cost([PartCost("deal", 5, 1.0), *parts])  # of each part the largest count
    assert (cost.repeated_us, cost.shared_us) == (pytest.approx(3.0), pytest.approx(10.0))


def test_every_part_is_measured_once(tmp_path: Path) -> None:
    said: list[str] = []
    costs = measure_parts([64], tmp_path / "parts.json", said.append)
    assert [cost.part for cost in costs] == list(PARTS)
    assert {*REPEATED, *SHARED, "plan", "pack"} == set(PARTS)
    assert all(cost.samples == 64 and cost.seconds >= 0 for cost in costs)
    assert len(said) == len(PARTS)
    assert measure_parts([64], tmp_path / "parts.json", said.append) == costs
    assert len(said) == len(PARTS)  # nothing was measured again


def test_the_tool_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "tools/scaling/__main__.py",
        "--output",
        str(tmp_path),
        "--processes",
        "1",
        "--samples",
        "0",
    ]
    environment = {"PATH": "/usr/bin", "PYTHONPATH": str(ROOT), "SELFEMO_DATA": str(tmp_path)}
    bad = [*command, "--runs", "/proc/nowhere"]
    result = subprocess.run(
        bad, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("scaling_study: a run of 1 process(es) failed")
    assert "Traceback" not in result.stderr
