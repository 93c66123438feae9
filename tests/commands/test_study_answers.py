"""Test that a study asks each of its models once, with a real vLLM engine (conftest.py has the run)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from selfemo.inference.engines import StandaloneEngines
from tests.helpers.finished_run import LIMIT
from tools.study.answers import SplitAnswers, ask_all
from tools.study.plan import START
from tools.study.runs import StudyRun


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
        return ask_all(runs, "dev", limit, tmp_path / "dev.json", engines, told.append)

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
