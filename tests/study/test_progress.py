"""Test what is left of a study, and that the test split is evaluated once."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from tools.study import once
from tools.study.answers import ModelAnswers, Questions, SplitAnswers, reader_of, save_answers, unanswered
from tools.study.estimate import Left, asking_left, render_left, training_left
from tools.study.runs import StudyRun
from tools.study.schema import START, Guess, StudyPlan, Variant

PLAN = StudyPlan(
    base="b",
    seeds=[1, 2, 3],
    start=[],
    self_play=[],
    variants=[Variant("slow", "s", minutes=50), Variant("quick", "q")],
    baselines=["start"],
    guess=Guess(start=30, run=7, ask=2),
)


@pytest.fixture
def runs(tmp_path: Path) -> list[StudyRun]:
    """List nine runs: the starts of seeds 1 and 2 have ended after 6 and 10 minutes of two processes."""
    found = [
        StudyRun(seed, name, tmp_path / f"seed-{seed}" / name, ())
        for name in PLAN.names
        for seed in PLAN.seeds
    ]
    for run, seconds in zip(found, (180, 300), strict=False):
        end(run, seconds)
    return found


def end(run: StudyRun, seconds: float) -> None:
    run.directory.mkdir(parents=True, exist_ok=True)
    summary = {"seconds": {"total": seconds}, "world_size": 2}
    (run.directory / "summary.json").write_text(json.dumps(summary))


def answers_of(run: StudyRun, seconds: float = 0.0, read_by: str = "") -> ModelAnswers:
    return ModelAnswers(
        run.variant, run.seed, ("joy",), 1, 0, 0, None, run.trained_as, read_by=read_by, seconds=seconds
    )


def test_what_is_left_is_counted_by_what_ended_and_else_by_guess(runs):
    assert list(training_left(PLAN, runs)) == [
        Left(START, 1, 3, 8.0, 2),
        Left("slow", 3, 3, 50.0, 0),
        Left("quick", 3, 3, 7.0, 0),
    ]
    assert "left: 179 CPU minutes" in render_left(list(training_left(PLAN, runs)))


def test_models_that_were_asked_are_not_left(runs, tmp_path):
    assert asking_left(PLAN, runs, tmp_path, "dev") == Left("answers on dev", 9, 9, 2, 0)
    models = (answers_of(runs[0], 60), answers_of(runs[1], 180))
    save_answers(tmp_path / "dev.json", SplitAnswers("toy", "dev", ("joy",), ("joy",), ("1",), models))
    assert asking_left(PLAN, runs, tmp_path, "dev") == Left("answers on dev", 7, 9, 2, 2)
    end(runs[0], 181)
    assert asking_left(PLAN, runs, tmp_path, "dev").left == 8, "it was trained again since"


def test_another_seeds_start_reads_and_another_reader_is_another_question(runs):
    for run in runs:
        end(run, 60)
    assert [getattr(reader_of(run, runs, "next_start"), "seed", None) for run in runs[:6]] == [2, 3, 1] * 2
    assert [reader_of(run, runs, "own_start") for run in runs[:4]] == [None, None, None, runs[0]]
    assert reader_of(runs[4], runs, "none") is None
    kept = {(run.seed, run.variant): answers_of(run) for run in runs}
    assert unanswered(runs, Questions("dev"), kept) == []
    assert unanswered(runs, Questions("dev", reader="next_start"), kept) == runs


def test_the_test_split_is_evaluated_once_and_again_only_if_asked(tmp_path):
    once.check_test(tmp_path, again=False, commit="c1")
    once.begin_test(tmp_path, "c1")
    assert not once.is_done(tmp_path)
    once.end_test(tmp_path)
    with pytest.raises(
        UserError, match=r"test_evaluations\.json: .* was evaluated at commit c1 on .*--again"
    ):
        once.check_test(tmp_path, again=False, commit="c1")
    once.check_test(tmp_path, again=True, commit="c2")
    once.begin_test(tmp_path, "c2")
    once.end_test(tmp_path)
    first, second = once.told(tmp_path).split("; ")
    assert (first.split()[1], second.split()[1]) == ("c1", "c2")
    assert once.is_done(tmp_path)


def test_an_evaluation_that_was_cut_short_goes_on_at_its_commit_alone(tmp_path):
    once.begin_test(tmp_path, "c1")
    once.check_test(tmp_path, again=False, commit="c1")
    once.begin_test(tmp_path, "c1")
    assert len(once.evaluations(tmp_path)) == 1
    with pytest.raises(UserError, match="was begun to be evaluated at commit c1"):
        once.check_test(tmp_path, again=False, commit="c2")


def test_the_test_split_is_not_evaluated_at_files_that_no_commit_holds(tmp_path):
    with pytest.raises(UserError, match=r"--test evaluates .* c1 with uncommitted changes: commit them"):
        once.check_test(tmp_path, again=True, commit=f"c1{once.CHANGED}")


def test_a_damaged_record_is_no_leave_to_evaluate_again(tmp_path):
    """Cut the record short, or write what another version might have written."""
    once.begin_test(tmp_path, "c1")
    whole = (tmp_path / once.RECORD).read_text()
    for damaged, named in (
        (whole[:-9], "not valid JSON"),
        ('{"evaluated": []}', "evaluations: Field required"),
    ):
        (tmp_path / once.RECORD).write_text(damaged)
        with pytest.raises(UserError, match=rf"test_evaluations\.json: {named}.*restore it"):
            once.check_test(tmp_path, again=False, commit="c1")


def test_damaged_answers_are_named(tmp_path, runs):
    (tmp_path / "dev.json").write_text('{"corpus": "toy"}')
    with pytest.raises(UserError, match=r"dev\.json: split: .*remove it, and the models are asked again"):
        asking_left(PLAN, runs, tmp_path, "dev")


def test_the_commit_is_named_and_changes_beside_it(tmp_path):
    assert once.current_commit(tmp_path).startswith("unknown")
    file = tmp_path / "file"
    file.write_text("one")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (["init"], ["add", "file"], [*identity, "commit", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    commit = once.current_commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "untracked").write_text("")
    assert once.current_commit(tmp_path) == commit
    file.write_text("two")
    assert once.current_commit(tmp_path) == f"{commit} with uncommitted changes"
