"""Test study files: every run is checked before one starts, and each trains with the file's settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.records.directory import RunDirectory
from selfemo.selfplay.views import unknown_views
from tools.study.plan import only_seeds, read_plan
from tools.study.runs import continuations, starts, voters
from tools.study.schema import START

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
PLAIN = "says: plain, overrides: [algorithm.loss=grpo]"
VOTING = "says: votes, untrained: true, views: [plain, short]"


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
        ("seeds: [1, 2]", "seeds: [1, 1]", "a seed is named twice"),
        ("seeds: [1, 2]", "seeds: [1, 2]\nshares: {0.1: [1]}", "name one of the two"),
        ("seeds: [1, 2]", "shares: {10: [1]}", "less than or equal to 1"),
        ("seeds: [1, 2]", "shares: {0.1: []}", "shares: 0.1: expected at least one seed"),
        ("seeds: [1, 2]", "shares: {0.1: [1]}\nmain: [grpo]\nmain_share: 0.2", "main_share=0.2"),
        ("seeds: [1, 2]", "seeds: [1]\nreader: next_start", "the study has seed 1 alone"),
        ("seeds: [1, 2]", "seeds: [1]\nvotes: 1", "votes=1"),
        ("baselines: [sft]", "baselines: [sft]\ncalibrated: [grpo]", "votes=0"),
        ("baselines: [sft]", "baselines: [sft]\nmain: [dpo]", "main: 'dpo'"),
        ("baselines: [sft]", "baselines: [sft]\nonly: [dpo]", "only: 'dpo'"),
        ("baselines: [sft]", "baselines: [sft]\nonly: [grpo]", "baseline 'sft'"),
        ("baselines: [sft]", "baselines: [sft]\nadjust: {dpo: [iterations=2]}", "adjust: 'dpo'"),
        (
            "variants:\n",
            f"adjust: {{vote: [iterations=2]}}\nvariants:\n  - {{name: vote, {VOTING}}}\n",
            "nothing to adjust",
        ),
        ("says: plain", "says: plain, like: dpo", "is like 'dpo'"),
        ("says: plain", "says: plain, views: [plain, mirrored]", "mirrored"),
        ("says: plain", "says: plain, untrained: true, views: [plain, short]", "no overrides"),
        (PLAIN, VOTING + ", minutes: 2", "no overrides, like or minutes"),
        (
            "variants:\n",
            f"votes: 2\ncalibrated: [vote]\nvariants:\n  - {{name: vote, {VOTING}}}\n",
            "'vote' is un",
        ),
        (PLAIN, "says: plain, untrained: true", "views that vote"),
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


def test_a_corpus_whose_dev_split_is_drawn_by_seed_is_refused(study_file, tmp_path):
    """Dev turns of one seed are training turns of another: no two models are asked about the same."""
    study_file.write_text(STUDY + "settings: [corpus.dev_share=0.1]\n")
    with pytest.raises(UserError, match=r"study\.yaml: corpus\.dev_share=0\.1 draws another dev split"):
        starts(read_plan(study_file), study_file, tmp_path)


@pytest.mark.parametrize(
    ("name", "seeds"), [("study_cpu.yaml", 3), ("study_smollm2.yaml", 3), ("study_pull.yaml", 1)]
)
def test_the_studies_of_this_project_are_valid(name, seeds, tmp_path):
    study_file = ROOT / "examples" / "configs" / name
    plan = read_plan(study_file)
    assert len(plan.seeds) >= seeds
    assert len(continuations(plan, study_file, tmp_path)) == len(plan.seeds) * len(plan.variants)
    assert starts(plan, study_file, tmp_path)[0].directory == tmp_path / "seed-1" / START


def test_every_labelled_share_has_its_own_starts_and_runs(study_file, tmp_path):
    study_file.write_text(STUDY.replace("seeds: [1, 2]", "shares: {0.1: [1, 2], 0.25: [2]}"))
    plan = read_plan(study_file)
    first, others = starts(plan, study_file, tmp_path), continuations(plan, study_file, tmp_path)
    assert [(run.share, run.seed) for run in first] == [(0.1, 1), (0.1, 2), (0.25, 2)]
    assert all(settings_of(run).corpus.labelled_share == run.share for run in [*first, *others])
    assert len({run.directory for run in [*first, *others]}) == 3 * 3
    start_of = {(run.share, run.seed): str(run.model) for run in first}
    assert all(settings_of(run).model.path == start_of[run.share, run.seed] for run in others)
    only = only_seeds(plan, [1])
    assert only.parts == [(0.1, [1])], "a share without the seed is left out"


def test_a_variant_takes_the_overrides_of_another_before_its_own(study_file, tmp_path):
    like = "  - {name: dapo, says: another, like: grpo, overrides: [algorithm.loss=dapo]}\n"
    grpo = "overrides: [algorithm.loss=grpo, iterations=7]"
    study_file.write_text(
        STUDY.replace("overrides: [algorithm.loss=grpo]", grpo) + like + "only: [dapo, sft]\n"
    )
    plan = read_plan(study_file)
    assert plan.names == [START, "sft", "dapo"]
    (run,) = continuations(only_seeds(plan, [1]), study_file, tmp_path)[1:]
    assert (settings_of(run).algorithm.loss, settings_of(run).iterations) == ("dapo", 7)


def test_a_study_extends_another(study_file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("extends: study.yaml\nsettings: [corpus.history_turns=2]\nseeds: [3]\n")
    plan = read_plan(other)
    assert (plan.seeds, plan.names) == ([3], read_plan(study_file).names)
    runs = [*starts(plan, other, tmp_path / "out"), *continuations(plan, other, tmp_path / "out")]
    assert {settings_of(run).corpus.history_turns for run in runs} == {2}


def test_a_study_adjusts_variants_of_the_one_that_it_extends(study_file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("extends: study.yaml\nadjust: {grpo: [iterations=9, algorithm.loss=dapo]}\n")
    plan = read_plan(other)
    for run in continuations(plan, other, tmp_path / "out"):
        config = settings_of(run)
        is_adjusted = run.variant == "grpo"
        assert (config.iterations, config.algorithm.loss) == (
            (9, "dapo") if is_adjusted else (0, "self_grpo")
        ), run.variant


def test_an_untrained_variant_is_the_start_asked_in_views(study_file, tmp_path):
    voting = "  - {name: voting, says: votes, untrained: true, views: [plain, short]}\n"
    study_file.write_text(STUDY + voting + "votes: 4\ncalibrated: [start]\n")
    plan = read_plan(study_file)
    assert "voting" not in [run.variant for run in continuations(plan, study_file, tmp_path)]
    first, asked = starts(plan, study_file, tmp_path), voters(plan, tmp_path)
    assert [(run.variant, run.model, run.views) for run in asked] == [
        ("voting", start.model, ("plain", "short")) for start in first
    ]
    assert {run.votes for run in first} == {4}
    assert {run.votes for run in [*asked, *continuations(plan, study_file, tmp_path)]} == {0}


SCARCE = ("study_scarce.yaml", "study_scarce_emorynlp.yaml", "study_scarce_whole.yaml")


@pytest.mark.long
@pytest.mark.parametrize("name", SCARCE)
def test_every_arm_of_the_study_takes_as_many_steps_over_as_many_sequences(name, tmp_path):
    """Count what each arm is trained on; its settings are checked before, as `selfemo train` checks them."""
    study_file = ROOT / "examples" / "configs" / name
    plan = read_plan(study_file)
    runs = [run for run in continuations(plan, study_file, tmp_path) if (run.share, run.seed) == (0.1, 1)]
    budgets = {}
    for run in runs:
        config = settings_of(run)
        assert list(unknown_views(config.selfplay, config.sft)) == []
        play, algorithm, reward = config.selfplay, config.algorithm, config.reward
        updates, size = algorithm.updates_per_rollout, play.recognizer_group_size
        sampled = play.seeds_per_iteration * size // updates if reward.alignment_weight else 0
        taught = algorithm.supervised_batch_size if algorithm.supervised_weight else 0
        budgets[run.variant] = (
            (config.iterations * updates, sampled + taught)
            if config.iterations
            else (config.sft.steps, config.sft.batch_size)
        )
    assert set(budgets.values()) == {(120, 48)}, budgets


def test_the_arms_of_the_study_are_those_that_its_page_lists():
    arms = {arm for name in SCARCE for arm in read_plan(ROOT / "examples" / "configs" / name).names}
    page = (ROOT / "docs" / "study" / "README.md").read_text(encoding="utf-8")
    table = page.split("## Arms")[1].split("## Measures")[0]
    listed = {
        name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)
    }
    assert listed == arms


@pytest.mark.long
@pytest.mark.parametrize("name", SCARCE)
def test_the_corpora_of_the_study_are_held_out_of_each_other_and_of_themselves(name, tmp_path):
    study_file = ROOT / "examples" / "configs" / name
    plan = read_plan(study_file)
    runs = [*starts(plan, study_file, tmp_path), *continuations(plan, study_file, tmp_path)]
    assert {settings_of(run).corpus.hold_out for run in runs} == {"meld,emorynlp"}
    assert {settings_of(run).corpus.name for run in runs} == {"emorynlp" if "emorynlp" in name else "meld"}


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
