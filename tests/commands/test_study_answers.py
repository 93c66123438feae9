"""Test that a study asks each of its models once, with a real vLLM engine (conftest.py has the run)."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.evaluation.options import EvaluationOptions
from selfemo.evaluation.run import run_evaluation
from selfemo.inference.engines import StandaloneEngines
from selfemo.records.directory import RunDirectory
from tests.helpers.finished_run import LIMIT
from tools.study.__main__ import study
from tools.study.answers import Questions, SplitAnswers
from tools.study.asking import ask_all
from tools.study.plan import read_plan
from tools.study.runs import StudyRun, continuations, starts
from tools.study.schema import START

STUDY = f"""
base: base.yaml
shares: {{0.5: [1]}}
limit: {LIMIT}
start: []
self_play: []
baselines: [start]
main: [sft]
variants:
  - {{name: sft, says: more, overrides: [iterations=0]}}
  - {{name: voting, says: votes, untrained: true, views: [plain, labels]}}
"""


@pytest.fixture
def study_runs(run_dir: Path, tmp_path: Path) -> list[StudyRun]:
    """Write a study's starting run and one variant that continued it."""
    runs = [StudyRun(1, variant, tmp_path / "seed-1" / variant, ()) for variant in (START, "grpo")]
    for run, weights in zip(runs, ("model-initial", "model"), strict=True):
        run.directory.mkdir(parents=True)
        shutil.copytree(run_dir / weights, run.model)
        shutil.copy(run_dir / "config.yaml", run.directory)
        (run.directory / "summary.json").write_text(json.dumps({"variant": run.variant}))
    return runs


@pytest.mark.long
def test_a_study_asks_a_model_once_and_again_after_it_was_trained_again(
    study_runs: list[StudyRun], engines: StandaloneEngines, tmp_path: Path
) -> None:
    told: list[str] = []

    def ask(runs: list[StudyRun], limit: int = LIMIT) -> SplitAnswers:
        told.clear()
        return ask_all(runs, Questions("dev", limit), tmp_path / "dev.json", engines, told.append)

    ask(study_runs[:1])
    answers = ask(study_runs)
    # The answers of the start were kept and are not asked again.
    assert [line.split()[1] for line in told] == [str(study_runs[1].directory)]
    start, trained = answers.models
    assert start.predicted != trained.predicted
    assert (start.expression, trained.expression is None) == (None, False)
    assert ask(study_runs) == answers
    assert not told
    (study_runs[1].directory / "summary.json").write_text(json.dumps({"variant": "grpo", "seconds": 2}))
    assert ask(study_runs).models[1].predicted == trained.predicted
    assert len(told) == 1
    # The turns differ: no kept answer fits them.
    assert len(ask(study_runs, LIMIT - 1).models[0].predicted) == LIMIT - 1
    assert len(told) == 2


@pytest.mark.long
def test_views_votes_and_another_seeds_reader_are_asked_of_those_that_have_them(
    study_runs: list[StudyRun], engines: StandaloneEngines, tmp_path: Path
) -> None:
    untaught, start = study_runs[0], replace(study_runs[1], variant=START)
    second = replace(start, seed=2, directory=tmp_path / "seed-2" / START)
    shutil.copytree(start.directory, second.directory)
    views = ("plain", "short", "labels")
    runs = [
        replace(start, votes=4),
        second,
        replace(untaught, variant="sft", views=views),
        replace(start, variant="voting", views=views, untrained=True),
    ]
    questions = Questions("dev", LIMIT, "next_start")
    models = ask_all(runs, questions, tmp_path / "dev.json", engines, lambda line: None).models
    assert [model.calibration is not None for model in models] == [True, False, False, False]
    assert [model.agreement is not None for model in models] == [False, False, True, True]
    assert [model.read_by.split(",")[0] for model in models] == ["seed 2", "seed 1", "seed 2", ""]
    assert [model.expression is not None for model in models] == [True, True, True, False]
    options = EvaluationOptions(start.model, None, None, (), "", "dev", LIMIT, "generate", 0, 1, views)
    voting = run_evaluation(options, lambda: engines, lambda line: None).models[0].voting
    assert voting is not None
    assert models[3].predicted == voting.recognition.predicted, "as `selfemo eval --views` votes"


@pytest.mark.long
def test_a_study_whose_runs_have_ended_is_told_from_its_first_answers_to_its_test_split(
    run_dir: Path,
    engines: StandaloneEngines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tools.study.__main__.StandaloneEngines", lambda: engines)
    monkeypatch.setattr("tools.study.once.current_commit", lambda: "c1")
    shutil.copy(run_dir / "config.yaml", tmp_path / "base.yaml")
    study_file, output = tmp_path / "study.yaml", tmp_path / "out"
    study_file.write_text(STUDY)
    plan = read_plan(study_file)
    runs = [*starts(plan, study_file, output), *continuations(plan, study_file, output)]
    for run in runs:
        directory = RunDirectory.claim(load_config(run.settings[1], run.settings[2:]))
        shutil.copytree(run_dir / ("model" if run.variant == "sft" else "model-initial"), run.model)
        directory.write_json("summary.json", {"seconds": {"total": 120}, "world_size": 1})
    study(study_file, output, estimate=True)
    assert "answers on dev              3 of    3 left" in capsys.readouterr().out
    study(study_file, output)
    page = (output / "report.md").read_text()
    assert "### everyday dev, 50% of the labels: 16 turns" in page
    assert re.search(r"\| `sft` \| 1 \| 2\.0 \| \d+\.\d \|", page), "its cost"
    assert "everyday test" not in page
    study(study_file, output, test=True)
    capsys.readouterr()
    with pytest.raises(UserError, match="it is evaluated once"):
        study(study_file, output, test=True)
    study(study_file, output)
    told = capsys.readouterr()
    assert "evaluating" not in told.err
    assert "The test split was evaluated once, at commit " in told.out, "it stays on the page"
    assert "### everyday test, 50% of the labels" in told.out
    study(study_file, output, test=True, again=True)
    assert "**The test split was evaluated 2 times**" in capsys.readouterr().out
