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
from tools.scaling.output import draw, measured_before, write_study
from tools.scaling.parts import OwnCost, RankCost, at_one_speed, growth, measure_parts, own_cost
from tools.scaling.planned import SIZES, plan_studies
from tools.scaling.rows import Row, in_order, with_efficiency

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {"algorithm", "model", "policy_lag", "mean_tokens", "max_tokens", "gpus", "groups", "samples"} | {
    "generation_layout",
    "training_layout",
    "tokens_per_s_per_gpu",
    "step_s",
}


@pytest.fixture(scope="module")
def planned() -> list[Row]:
    return plan_studies(ROOT / "examples" / "configs" / "qwen3_8b.yaml", "qwen3-8b", OwnCost(90.0, 6.0))


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


def test_a_step_waits_for_a_rank_s_own_samples_and_for_all_groups(planned: list[Row]) -> None:
    """On 4,096 GPUs 90 us for each of a rank's 1,152 samples, and 6 us for each of 0.8 million groups."""
    without = plan_studies(
        ROOT / "examples" / "configs" / "qwen3_8b.yaml", "qwen3-8b", OwnCost(), sizes=(4096,)
    )
    for study in ("strong", "weak"):
        last, free = (
            next(r for r in rows if (r.study, r.gpus) == (study, 4096)) for rows in (planned, without)
        )
        assert last.step_s - free.step_s == pytest.approx(last.samples / 4096 * 90e-6 + last.groups * 6e-6)


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
    parts = [cost(8, 0, {"self-play": 0.1}), cost(512, 0, {"self-play": 0.2})]
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
    assert document["parts_growth"]["seconds of rank 0"] == pytest.approx(2.0)
    assert [row["self-play s"] for row in csv.DictReader((tmp_path / "parts.csv").open())] == ["0.1", "0.2"]
    again = measured_before(tmp_path)
    assert again == [replace(in_order(rows)[0], note="here; measured d")]
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


def test_the_plot_shows_every_part_of_both_ranks(planned: list[Row]) -> None:
    parts = {"self-play": 0.1, "dealing": 0.01}
    figure = draw(planned, [cost(gpus, rank, parts) for gpus in (8, 64) for rank in (0, gpus // 2)])
    assert [line.get_label() for line in figure.axes[3].lines] == [
        f"{part}, {who}" for who in ("rank 0", "another rank") for part in parts
    ]


def cost(gpus: int, rank: int, parts: dict[str, float], received_bytes: int = 10) -> RankCost:
    return RankCost(gpus, rank, 1000, 100, parts, 1.0, received_bytes, 1)


def test_growth_compares_the_largest_world_with_the_smallest_rank_by_rank() -> None:
    costs = [cost(8, 0, {"a": 1.0}), cost(64, 0, {"a": 9.0}), cost(512, 0, {"a": 2.0, "b": 2.0}, 30)]
    costs += [cost(8, 4, {"a": 1.0}), cost(512, 256, {"a": 1.0})]
    found = growth(costs)
    assert (found["seconds of rank 0"], found["received_bytes of rank 0"]) == (4.0, 3.0)
    assert found["seconds of another rank"] == 1.0


def test_ranks_that_were_measured_on_a_slower_processor_are_scaled() -> None:
    slow = replace(cost(64, 0, {"a": 3.0}), loop_s=1.5)
    assert [c.seconds for c in at_one_speed([cost(8, 0, {"a": 2.0}), slow, cost(8, 4, {"a": 1.0})])] == [
        2,
        2,
        1,
    ]


def test_what_a_larger_world_costs_rank_0_is_counted_per_group_of_all() -> None:
    found = own_cost(
        [cost(8, 0, {"a": 0.09}), cost(512, 0, {"a": 0.1, "b": 0.2}), cost(512, 256, {"a": 9.0})]
    )
    assert found.sample_us == pytest.approx(90.0)
    assert found.group_us == pytest.approx(0.21e6 / (504 * 100))
    assert own_cost([]) == OwnCost()


def test_a_simulated_rank_is_measured_once_and_runs_the_whole_data_plane(tmp_path: Path) -> None:
    said: list[str] = []
    costs = measure_parts([2], tmp_path / "parts.json", said.append)
    assert [(found.gpus, found.rank) for found in costs] == [(2, 0), (2, 1)]
    for found in costs:
        assert found.parts.keys() >= {"openings", "self-play", "flywheel", "dealing", "figures"}
        assert found.samples > 900
        assert found.received_bytes > 0
    assert measure_parts([2], tmp_path / "parts.json", said.append) == costs
    assert len(said) == 2, "nothing was measured again"


def test_the_tool_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "tools/scaling/__main__.py",
        "--output",
        str(tmp_path),
        "--processes",
        "1",
        "--worlds",
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
