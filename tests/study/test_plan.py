"""Test study files: every run is checked before one starts, and each trains with the file's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.records.directory import RunDirectory
from tools.study.plan import START, only_seeds, read_plan
from tools.study.runs import continuations, starts

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
base: base.yaml
seeds: [1, 2]
start: [sft.steps=30]
self_play: [iterations=4]
baselines: [sft]
variants:
  - {name: sft, says: more of the same, overrides: [sft.steps=50, iterations=0]}
  - {name: grpo, says: plain, overrides: [algorithm.loss=grpo]}
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("corpus: {name: everyday}\n")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


def settings_of(run):
    _, base, *overrides = run.settings
    return load_config(base, overrides)


def test_every_variant_of_a_seed_continues_that_seeds_start(study_file, tmp_path):
    plan = read_plan(study_file)
    first, others = (
        starts(plan, study_file, tmp_path / "out"),
        continuations(plan, study_file, tmp_path / "out"),
    )
    assert [(run.seed, run.variant) for run in first] == [(1, START), (2, START)]
    assert [(run.seed, run.variant) for run in others] == [(1, "sft"), (2, "sft"), (1, "grpo"), (2, "grpo")]
    by_name = {(run.seed, run.variant): settings_of(run) for run in [*first, *others]}
    assert (by_name[2, START].sft.steps, by_name[2, START].iterations, by_name[2, START].seed) == (30, 0, 2)
    assert (
        by_name[2, "grpo"].sft.steps,
        by_name[2, "grpo"].iterations,
        by_name[2, "grpo"].algorithm.loss,
    ) == (0, 4, "grpo")
    assert (by_name[1, "sft"].sft.steps, by_name[1, "sft"].iterations) == (50, 0)
    assert all(by_name[run.seed, run.variant].model.path == str(first[run.seed - 1].model) for run in others)
    assert len({run.directory for run in [*first, *others]}) == 6


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seeds: [1, 2]", "seeds: []", "seeds"),
        ("name: grpo", "name: sft", "'sft' is named twice"),
        ("name: grpo", "name: start", "'start' is named twice"),
        ("name: grpo", "name: ../up", "name"),
        ("baselines: [sft]", "baselines: [dpo]", "baseline 'dpo'"),
        ("says: plain", "sayz: plain", "sayz"),
    ],
)
def test_a_wrong_study_is_refused_by_name(study_file, old, new, named):
    study_file.write_text(STUDY.replace(old, new))
    with pytest.raises(UserError, match=r"study\.yaml") as caught:
        read_plan(study_file)
    assert named in str(caught.value)


def test_a_wrong_override_is_found_before_any_run(study_file, tmp_path):
    study_file.write_text(STUDY.replace("algorithm.loss=grpo", "algorithm.los=grpo"))
    with pytest.raises(UserError, match=r"algorithm\.los"):
        continuations(read_plan(study_file), study_file, tmp_path)


@pytest.mark.parametrize(
    ("name", "seeds"), [("study_cpu.yaml", 3), ("study_smollm2.yaml", 3), ("study_pull.yaml", 1)]
)
def test_the_studies_of_this_project_are_valid(name, seeds, tmp_path):
    study_file = ROOT / "examples" / "configs" / name
    plan = read_plan(study_file)
    assert len(plan.seeds) >= seeds
    assert len(continuations(plan, study_file, tmp_path)) == len(plan.seeds) * len(plan.variants)


def test_a_run_that_was_trained_with_other_settings_is_not_taken_for_this_studys(study_file, tmp_path):
    """Edit the study file after a run.

    If the run were reused, the table would give it settings it never had.
    """
    (run,) = starts(only_seeds(read_plan(study_file), [1]), study_file, tmp_path / "out")
    RunDirectory.claim(settings_of(run)).write_json("summary.json", {})
    assert starts(read_plan(study_file), study_file, tmp_path / "out")[0].is_complete
    study_file.write_text(STUDY.replace("sft.steps=30", "sft.steps=31"))
    with pytest.raises(UserError, match=r"seed-1/start: .*sft\.steps"):
        starts(read_plan(study_file), study_file, tmp_path / "out")


def test_a_study_can_be_run_for_some_of_its_seeds(study_file, tmp_path):
    plan = read_plan(study_file)
    runs = continuations(only_seeds(plan, [2]), study_file, tmp_path)
    assert runs == [run for run in continuations(plan, study_file, tmp_path) if run.seed == 2]
    with pytest.raises(UserError, match=r"--seed 7: the study has seeds 1, 2"):
        only_seeds(plan, [2, 7])
