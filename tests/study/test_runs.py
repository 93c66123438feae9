"""Test how a study's runs stand to each other, and what is kept of one that has ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfemo.common.errors import UserError
from selfemo.records.content import model_digests
from selfemo.records.inputs import INPUTS_NAME
from tools.study.continued import check_continued
from tools.study.runs import StudyRun, train_all
from tools.study.schema import START


def ended(directory: Path, weight: float) -> StudyRun:
    """Write a complete run, as `selfemo train` leaves it."""
    (directory / "model").mkdir(parents=True)
    save_file({"layer": torch.full((3,), weight)}, directory / "model" / "model.safetensors")
    (directory / "checkpoints" / "iteration-000004").mkdir(parents=True)
    (directory / "summary.json").write_text("{}")
    return StudyRun(1, directory.name, directory, ())


def continues(run: StudyRun) -> None:
    """Record the start's present model as the one that the run began with."""
    inputs = {"model": model_digests(run.start_model), "corpus": {}}
    (run.directory / INPUTS_NAME).write_text(json.dumps(inputs))


def test_a_run_that_ended_before_it_was_tidied_is_tidied_by_the_next_call(tmp_path: Path) -> None:
    """A study may be killed between a run's end and its tidying: checkpoints would fill the disk."""
    run, told = ended(tmp_path / "seed-1" / "grpo", 1.0), []
    train_all([run], tmp_path / "tensors", 1, 1, told.append)
    assert not told, "it is not trained again"
    assert not (run.directory / "checkpoints").exists()
    assert sorted(path.name for path in run.model.iterdir()) == [
        "layer.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_run_that_fails_is_named_with_its_log_and_those_that_have_not_begun_do_not_begin(
    tmp_path: Path,
) -> None:
    runs = [
        StudyRun(seed, "grpo", tmp_path / f"seed-{seed}" / "grpo", ("--no-such-option",)) for seed in (1, 2)
    ]
    with pytest.raises(
        UserError, match=r"study run .*seed-1/grpo: ended with status 2, see .*grpo\.log \(.+\)"
    ):
        train_all(runs, tmp_path / "tensors", 1, 1, lambda line: None)
    assert not runs[1].directory.parent.exists()


def test_a_run_that_continued_another_start_is_not_compared(tmp_path: Path) -> None:
    """Train a start again for more steps: its runs have the same settings, but are of the older one."""
    places = [tmp_path / f"seed-{seed}" for seed in (1, 2)]
    starts = [ended(place / START, weight) for place, weight in zip(places, (1.0, 2.0), strict=True)]
    runs = [ended(place / name, 3.0) for place in places for name in ("sft", "grpo")]
    for run in runs:
        continues(run)
    not_begun = StudyRun(2, "dapo", places[1] / "dapo", ())
    check_continued([*runs, not_begun])
    save_file({"layer": torch.full((3,), 2.5)}, starts[1].model / "model.safetensors")
    with pytest.raises(
        UserError, match=r"seed-2/start/model: other weights than sft, grpo of this draw began"
    ):
        check_continued([*runs, not_begun])
