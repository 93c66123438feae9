"""Test that a run's directory belongs to one configuration, and holds the records of one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.schema import CorpusConfig, ParallelConfig, RunConfig, TrainConfig
from selfemo.records.directory import SUMMARY_NAME, RunDirectory


def config(tmp_path: Path) -> RunConfig:
    corpus = CorpusConfig(name="everyday")  # "auto" is settled as a configuration is loaded
    return replace(RunConfig(), output_dir=str(tmp_path / "run"), corpus=corpus)


def test_an_unfinished_run_without_a_checkpoint_is_replaced(tmp_path):
    run = RunDirectory.claim(config(tmp_path))
    run.append_jsonl("metrics.jsonl", {"event": "sft"})
    run.path("checkpoints", ".iteration-000001.0f").mkdir(parents=True)
    RunDirectory.claim(config(tmp_path))
    assert sorted(entry.name for entry in run.root.iterdir()) == ["config.yaml"]


def test_only_what_a_run_writes_is_removed(tmp_path):
    """Notes, a log that a shell writes and a link to data lie in a run's directory, too."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("x")
    run = RunDirectory.claim(config(tmp_path))
    run.append_jsonl("metrics.jsonl", {"event": "sft"})
    for name in ("model-initial", "flywheel", ".model.pending-7"):
        run.path(name).mkdir()
    for name in ("flywheel.sqlite-wal", ".inputs.json.tmp", "notes.md", "train.log", ".modelrc"):
        run.path(name).write_text("x")
    run.path("wandb").symlink_to(tmp_path / "data")
    RunDirectory.claim(config(tmp_path))
    left = ["config.yaml", "notes.md", "train.log", ".modelrc"]
    assert sorted(entry.name for entry in run.root.iterdir()) == sorted(left)
    assert (tmp_path / "data" / "mine").exists()


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_project_with_a_config_of_its_own_is_no_run(tmp_path, is_locked):
    """Its model would be removed as that of an unfinished run, and its comments be lost."""
    root = tmp_path / "run"
    (root / "model").mkdir(parents=True)
    (root / "config.yaml").write_text("# ours\ncorpus: {name: everyday}\n")
    with pytest.raises(
        UserError, match=r"not a run of selfemo \(its config.yaml is not one that a run writes"
    ):
        RunDirectory.check(config(tmp_path), is_locked)
    (root / "config.yaml").write_text("defaults: [hydra]\n")
    with pytest.raises(UserError, match=r"not a run of selfemo \(its config.yaml"):
        RunDirectory.check(config(tmp_path), is_locked)


def test_an_unfinished_run_with_a_checkpoint_is_left_to_be_resumed(tmp_path):
    run = RunDirectory.claim(config(tmp_path))
    run.append_jsonl("metrics.jsonl", {"event": "sft"})
    run.path("checkpoints", "iteration-000001").mkdir(parents=True)
    RunDirectory.claim(config(tmp_path))
    assert run.path("metrics.jsonl").exists()


def test_an_unfinished_run_may_go_on_in_another_layout_and_a_finished_one_stays_what_it_was(tmp_path):
    elsewhere = replace(config(tmp_path), parallel=ParallelConfig(tensor=2), timeout_s=7)
    run = RunDirectory.claim(config(tmp_path))
    RunDirectory.claim(elsewhere)
    assert "timeout_s: 7" in run.path("config.yaml").read_text()
    with pytest.raises(UserError, match=r"other parallel\.distributed_optimizer;"):
        RunDirectory.claim(replace(elsewhere, parallel=ParallelConfig(tensor=2, distributed_optimizer=True)))
    with pytest.raises(UserError, match=r"other train\.frozen_layers;"):
        RunDirectory.claim(replace(elsewhere, train=TrainConfig(frozen_layers=1)))
    run.write_json(SUMMARY_NAME, {"schema": 1})
    with pytest.raises(UserError, match=r"other .*timeout_s.*; see"):
        RunDirectory.claim(config(tmp_path))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    run = RunDirectory.claim(config(tmp_path))
    run.append_jsonl("metrics.jsonl", {"event": "sft"})
    run.write_json(SUMMARY_NAME, {"schema": 1})
    assert RunDirectory.claim(config(tmp_path)).is_complete
    assert run.path("metrics.jsonl").exists()


def test_another_configuration_is_refused_and_nothing_is_removed(tmp_path):
    run = RunDirectory.claim(config(tmp_path))
    run.append_jsonl("metrics.jsonl", {"event": "sft"})
    with pytest.raises(UserError, match=r"another configuration \(other seed;"):
        RunDirectory.claim(replace(config(tmp_path), seed=2))
    assert run.path("metrics.jsonl").exists()


def test_a_file_is_replaced_whole(tmp_path):
    run = RunDirectory.claim(config(tmp_path))
    run.write_json("x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("x.json", {"a": float("nan")})
    assert run.path("x.json").read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in run.root.glob(".*")] == []
