"""Test that a study goes on from the records of its runs, and that what needs a model is not made up."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from tools.study.answers import ModelAnswers, Questions, SplitAnswers, save_answers
from tools.study.asking import ask_all
from tools.study.continued import check_continued
from tools.study.records import restore, save
from tools.study.runs import StudyRun, train_all


def asked(runs: list[StudyRun]) -> SplitAnswers:
    models = tuple(
        ModelAnswers(run.variant, run.seed, ("joy",), 1, 0, 0, None, run.trained_as, seconds=1)
        for run in runs
    )
    return SplitAnswers("toy", "dev", ("joy",), ("joy",), ("1",), models, reader="none")


@pytest.fixture
def runs(tmp_path: Path) -> list[StudyRun]:
    """Write the runs of one draw, which have ended: their records, and a file that is large."""
    part = tmp_path / "study" / "share-0.1"
    found = [StudyRun(1, name, part / "seed-1" / name, (), 0.1) for name in ("start", "sft")]
    for run in found:
        run.model.mkdir(parents=True)
        (run.model / "model.safetensors").write_bytes(bytes(1000))
        for name in ("summary.json", "config.yaml", "inputs.json"):
            (run.directory / name).write_text(json.dumps({"model": run.variant}))
    return found


def elsewhere(runs: list[StudyRun], output: Path) -> list[StudyRun]:
    return [replace(r, directory=output / "share-0.1" / "seed-1" / r.variant) for r in runs]


def carried(runs: list[StudyRun], tmp_path: Path) -> list[StudyRun]:
    """Save the study, and restore it at another place."""
    save_answers(tmp_path / "study" / "share-0.1" / "dev.json", asked(runs))
    save(tmp_path / "study", tmp_path / "study.zip")
    restore(tmp_path / "study.zip", tmp_path / "again")
    return elsewhere(runs, tmp_path / "again")


def ask(runs: list[StudyRun], questions: Questions) -> SplitAnswers:
    return ask_all(runs, questions, runs[0].directory.parents[1] / "dev.json", None, print)  # type: ignore


def test_runs_that_were_carried_are_neither_trained_nor_asked_again(runs, tmp_path):
    found = carried(runs, tmp_path)
    assert not any(run.has_model for run in found)
    told: list[str] = []
    train_all(found, tmp_path / "tensors", 1, 1, told.append)
    check_continued(found[1:])
    assert ask(found, Questions("dev", reader="none")) == asked(runs)
    assert not told


def test_the_same_records_are_the_same_bytes(runs, tmp_path):
    found = carried(runs, tmp_path)
    save(found[0].directory.parents[2], tmp_path / "second.zip")
    assert (tmp_path / "second.zip").read_bytes() == (tmp_path / "study.zip").read_bytes()


def test_a_run_that_was_not_asked_since_it_was_trained_is_left_behind(runs, tmp_path):
    answers = asked(runs)
    (runs[1].directory / "summary.json").write_text("trained again")
    save_answers(tmp_path / "study" / "share-0.1" / "dev.json", answers)
    save(tmp_path / "study", tmp_path / "study.zip")
    names = zipfile.ZipFile(tmp_path / "study.zip").namelist()
    assert sorted({Path(name).parent.name for name in names}) == ["share-0.1", "start"]


def test_an_arm_that_is_left_and_another_question_need_the_models(runs, tmp_path):
    found = carried(runs, tmp_path)
    left = replace(found[1], variant="grpo", directory=found[1].directory.with_name("grpo"))
    with pytest.raises(UserError, match=r"start/model: not here.*but grpo continues it: remove .*seed-1"):
        check_continued([*found[1:], left])
    with pytest.raises(UserError, match=r"start/model: not here.*but it is to be asked: remove .*seed-1"):
        ask(found, Questions("dev", limit=7, reader="none"))


def test_nothing_is_saved_of_an_empty_study_nor_restored_over_another_or_out_of_place(runs, tmp_path):
    with pytest.raises(UserError, match=r"study: no model of a study was asked here"):
        save(tmp_path / "study", tmp_path / "study.zip")
    assert not list(tmp_path.glob("*.zip*"))
    with pytest.raises(UserError, match=r"study: exists already"):
        restore(tmp_path / "study.zip", tmp_path / "study")
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(UserError, match=r"text\.zip: cannot be read .*: expected a file of `save`"):
        restore(tmp_path / "text.zip", tmp_path / "again")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil", "x")
    with pytest.raises(UserError, match=r"evil\.zip: '\.\./evil' lies outside the study"):
        restore(tmp_path / "evil.zip", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.zip", "study", "text.zip"]
