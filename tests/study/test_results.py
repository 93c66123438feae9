"""Test intervals over seeds and dialogues, which are paired and wider than over dialogues alone.

Test the tables.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from selfemo.common.errors import UserError
from selfemo.evaluation.intervals import (
    METRICS,
    RESAMPLES,
    bootstrap,
    paired_bootstrap,
    seeded_bootstrap,
    seeded_p_values,
)
from selfemo.evaluation.metrics import NO_ANSWER
from tools.study.answers import ModelAnswers, SplitAnswers, load_answers, save_answers
from tools.study.page import write_page
from tools.study.plan import only_seeds
from tools.study.render import render
from tools.study.reproduced import main as compare
from tools.study.reproduced import pairs_of
from tools.study.results import (
    FURTHER,
    MAIN_RESAMPLES,
    differences_of,
    holm,
    means_of,
    tables_of,
    values_of,
)
from tools.study.schema import StudyPlan, Variant
from tools.study.tables import FAILURES, MINUTES, TRAINING, Value, read_tables, write_tables

LABELS = ("joy", "neutral", "sadness")
RNG = random.Random(5)
GOLD = tuple(RNG.choice(LABELS) for _ in range(300))
DIALOGUES = tuple(str(i // 5) for i in range(300))


def noisy(accuracy: float, seed: int) -> tuple[str, ...]:
    """Draw predictions that are right with this probability."""
    rng = random.Random(seed)
    return tuple(
        label if rng.random() < accuracy else rng.choice([other for other in LABELS if other != label])
        for label in GOLD
    )


def test_one_seed_is_the_bootstrap_over_dialogues():
    ours, theirs = noisy(0.7, 1), noisy(0.5, 2)
    assert seeded_bootstrap(GOLD, [ours], None, DIALOGUES, 3) == bootstrap(GOLD, ours, DIALOGUES, 3)
    assert seeded_bootstrap(GOLD, [ours], [theirs], DIALOGUES, 3) == paired_bootstrap(
        GOLD, ours, theirs, DIALOGUES, 3
    )


def test_the_value_is_the_mean_over_seeds():
    seeds = [noisy(accuracy, i) for i, accuracy in enumerate((0.4, 0.6, 0.8))]
    alone = [bootstrap(GOLD, predicted, DIALOGUES, 3) for predicted in seeds]
    for m, interval in enumerate(seeded_bootstrap(GOLD, seeds, None, DIALOGUES, 3)):
        assert interval.value == pytest.approx(sum(one[m].value for one in alone) / 3)


def test_seeds_that_disagree_widen_the_interval():
    """Give a recipe one lucky seed: its interval must reach 0, though that of the lucky run does not."""
    base = [noisy(0.6, i) for i in range(3)]
    lucky = [noisy(0.9, 11), noisy(0.6, 12), noisy(0.45, 13)]
    accuracy, *_ = seeded_bootstrap(GOLD, lucky, base, DIALOGUES, 3)
    alone, *_ = paired_bootstrap(GOLD, lucky[0], base[0], DIALOGUES, 3)
    assert alone.excludes_zero
    assert not accuracy.excludes_zero
    assert accuracy.high - accuracy.low > alone.high - alone.low


def test_a_recipe_does_not_differ_from_itself():
    seeds = [noisy(0.5, i) for i in range(3)]
    assert all(
        (i.value, i.low, i.high) == (0, 0, 0) for i in seeded_bootstrap(GOLD, seeds, seeds, DIALOGUES, 3)
    )


@pytest.mark.parametrize(("first", "second"), [([], None), ([GOLD], [GOLD, GOLD])])
def test_unequal_seeds_are_refused(first, second):
    with pytest.raises(ValueError, match="seeds"):
        seeded_bootstrap(GOLD, first, second, DIALOGUES, 3)


@pytest.mark.parametrize("accuracy", [0.5, 0.55, 0.6, 0.62, 0.65, 0.7, 0.9])
def test_a_p_value_is_below_a_twentieth_where_the_interval_excludes_zero(accuracy):
    ours, theirs = ([noisy(a, i + 7 * k) for i in range(3)] for k, a in enumerate((accuracy, 0.6)))
    intervals = seeded_bootstrap(GOLD, ours, theirs, DIALOGUES, 3)
    p_values = seeded_p_values(GOLD, ours, theirs, DIALOGUES, 3)
    assert [p < 0.05 for p in p_values] == [interval.excludes_zero for interval in intervals]
    assert all(2 / 2001 <= p <= 1 for p in p_values)
    assert p_values == seeded_p_values(GOLD, theirs, ours, DIALOGUES, 3), "two-sided"


def test_equal_recipes_have_a_p_value_of_one():
    assert set(seeded_p_values(GOLD, [GOLD], [GOLD], DIALOGUES, 3)) == {1.0}


def test_holms_correction_is_that_of_a_worked_example():
    """Use four p-values: the smallest times 4, the next times 3, and none below an earlier one."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == [0.8, 0.8]
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def answers(share: float | None = None, split: str = "dev") -> SplitAnswers:
    def models(variant: str, accuracy: float) -> list[ModelAnswers]:
        expression = None if variant == "start" else 0.25
        return [
            ModelAnswers(variant, seed, noisy(accuracy, seed), 0.5, 1.0, 0.4, expression, calibration=0.125)
            for seed in (2, 1)
        ]

    good = 0.9 if share is None else 0.9 - share
    return SplitAnswers("toy", split, LABELS, GOLD, DIALOGUES, (*models("start", 0.5), *models("good", good)))


PLAN = StudyPlan(
    base="b",
    seeds=[1, 2],
    start=["sft.steps=3"],
    self_play=["iterations=2"],
    variants=[Variant("good", "better", ["algorithm.loss=grpo"])],
    baselines=["start"],
    main=["good"],
)
SEVERAL = replace(PLAN, seeds=[], shares={0.25: [1, 2], 0.1: [1, 2]}, main_share=0.1)


def test_figures_and_differences_agree():
    names = ("start", "good")
    means, found = list(means_of(answers(), None, names)), differences_of(answers(), None, names, ["start"])
    start, good = ([row for row in means if row.variant == name] for name in names)
    for a, b, d in zip(good, start, found, strict=True):
        assert (a.measure, d.variant, d.baseline) == (d.measure, "good", "start")
        assert d.value == pytest.approx(a.value - b.value)
        assert d.excludes_zero
    values = [v for v in values_of(answers(), None) if (v.variant, v.measure) == ("good", "accuracy")]
    assert sum(v.value for v in values) / 2 == pytest.approx(good[0].value)


def test_a_measure_that_nobody_took_has_no_row():
    rows = list(values_of(answers(), 0.1))
    assert {row.variant for row in rows if row.measure == "expression"} == {"good"}
    assert {row.measure for row in rows} == {*METRICS, *FURTHER, FAILURES} - {"agreement"}
    assert {(row.share, row.split) for row in rows} == {(0.1, "dev")}


def test_only_the_main_comparison_is_corrected():
    """Correct two measures of one share; macro F1 and the other share are outside the family."""
    tables = tables_of(SEVERAL, [], {"dev": {share: answers(share) for share in SEVERAL.shares}}, "")
    corrected = [(row.share, row.variant, row.measure) for row in tables.comparisons if row.holm is not None]
    assert corrected == [(0.1, "good", "accuracy"), (0.1, "good", "weighted_f1")]
    assert all(row.holm == min(1, 2 * row.p) for row in tables.comparisons if row.holm is not None)


def test_the_page_shows_every_variant_and_marks_what_excludes_zero():
    text = render(tables_of(PLAN, [], {"dev": {None: answers()}}, ""))
    assert "### toy dev: 300 turns, 60 dialogues" in text
    assert "| `good` | **+" in text
    assert text.count("| `good` | ") == 2 + 1 + 2, "two figures and differences, one arm, two tests"
    assert "Seeds 1, 2; intervals over seeds and dialogues. Gold: " in text
    assert "| `start` | the SFT start | `sft.steps=3` |" in text
    assert "continues the start | `iterations=2` |" in text
    assert "| 0.125 | - |" in text, "the start writes no replies"
    assert "agreement" not in text
    assert "-curve" not in text


def test_the_share_of_neutral_stands_beside_every_accuracy():
    """Let a model collapse to neutral: the accuracy of its difference alone would not show it."""
    collapsed = ModelAnswers("good", 1, ("neutral",) * len(GOLD), 0.5, 0.0, 1.0, None)
    start = next(m for m in answers().models if (m.variant, m.seed) == ("start", 1))
    alone = replace(answers(), models=(start, collapsed))
    tables = tables_of(replace(PLAN, seeds=[1]), [], {"dev": {None: alone}}, "")
    neutral = GOLD.count("neutral") / len(GOLD)
    assert tables.splits[0].neutral == neutral
    lines = render(tables).splitlines()
    assert (
        f"Seeds 1; intervals over dialogues alone, since there is one seed. Gold: {neutral:.1%} neutral."
        in lines
    )
    shown = [line for line in lines if line.startswith("| `good` | ") and "[" in line]
    assert [line.count("100.0%") for line in shown] == [1, 1, 1, 1], "figures, differences and two tests"
    assert [line.count("100.0% (+60.0)") for line in shown] == [0, 1, 1, 1], "the start's share is 40%"


def test_answers_outside_the_grammar_are_counted_beside_the_share_of_neutral():
    """Let half the answers fail: the share of neutral is of the other half."""
    half = len(GOLD) // 2
    failing = ModelAnswers("good", 1, (NO_ANSWER,) * half + ("neutral",) * half, 0.5, 0.0, 1.0, None)
    start = next(m for m in answers().models if (m.variant, m.seed) == ("start", 1))
    tables = tables_of(PLAN, [], {"dev": {None: replace(answers(), models=(start, failing))}}, "")
    assert "| 100.0% | 50.0% | 0.500 |" in render(tables)


def test_the_main_comparison_is_resampled_more_than_others():
    """Give each of three variants the same answers: only those of the main comparison can reach a small p."""
    models = tuple(replace(m, variant=name) for name in ("good", "main") for m in answers().of("good"))
    both = replace(answers(), models=(*answers().of("start"), *models))
    rows = differences_of(both, None, ("start", "good", "main"), ["start"], ["main"])
    least = {row.variant: min(r.p for r in rows if r.variant == row.variant) for row in rows}
    assert least["good"] == pytest.approx(2 / (RESAMPLES + 1))
    assert least["main"] == pytest.approx(2 / (MAIN_RESAMPLES + 1))


def test_the_cost_is_that_of_training_and_of_asking():
    asked = replace(answers(), models=tuple(replace(m, seconds=90.0) for m in answers().models))
    tables = tables_of(PLAN, [], {"dev": {None: asked}}, "")
    trained = Value(None, 1, "good", TRAINING, MINUTES, 5.0)
    text = render(replace(tables, values=(*tables.values, trained)))
    assert "| CPU minutes | runs | a run | asking about dev |" in text
    assert "| `good` | 1 | 5.0 | 1.5 |" in text
    assert "| `start` | 0 | - | 1.5 |" in text
    assert "Together 11 CPU minutes." in text


def test_the_page_and_its_figures_come_from_the_csv_files_alone(tmp_path):
    both = {split: {share: answers(share, split) for share in SEVERAL.shares} for split in ("dev", "test")}
    tables = tables_of(SEVERAL, [], both, "commit a on day one; commit b on day two")
    write_tables(tmp_path / "tables", tables)
    text = write_page(read_tables(tmp_path / "tables"), tmp_path)
    assert text == render(tables) == (tmp_path / "report.md").read_text()
    assert (
        "**The test split was evaluated 2 times**: at commit a on day one, again at commit b on day" in text
    )
    assert text.count("Main comparison") == 2, "one for each split"
    for name in ("dev.png", "dev-curve.png", "test.png", "test-curve.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "tables" / "values.csv").write_text("share,seed\n0.1,one\n")
    with pytest.raises(UserError, match=r"values\.csv: 0\."):
        read_tables(tmp_path / "tables")
    (tmp_path / "tables" / "arms.csv").unlink()
    with pytest.raises(UserError, match=r"arms\.csv: cannot be read"):
        read_tables(tmp_path / "tables")


def test_a_seed_that_was_run_again_is_compared_with_its_own_published_row(tmp_path, capsys):
    """Publish two seeds, run one again: its row has other figures than the mean."""
    both = {0.1: answers(0.1), 0.25: answers(0.25)}
    published = tables_of(SEVERAL, [], {"dev": both, "test": {k: answers(k, "test") for k in both}}, "")
    seed_1 = {k: replace(a, models=tuple(m for m in a.models if m.seed == 1)) for k, a in both.items()}
    again = tables_of(only_seeds(SEVERAL, [1]), [], {"dev": seed_1}, "")
    pairs = list(pairs_of(again, published))
    assert len(pairs) == 2 * 2 * 3, "two shares, two variants, three measures; test was not run again"
    assert all(pair.published == pytest.approx(pair.new.value) and pair.is_reproduced for pair in pairs)
    lost = {0.1: replace(seed_1[0.1], models=tuple(replace(m, predicted=GOLD) for m in seed_1[0.1].models))}
    write_tables(tmp_path / "new", tables_of(only_seeds(SEVERAL, [1]), [], {"dev": lost}, ""))
    write_tables(tmp_path / "published", published)
    compare(tmp_path / "new", tmp_path / "published")
    said = capsys.readouterr().out
    assert re.search(r"start at 0\.1, dev, accuracy: published 5\d\.\d, now 100\.0 \[100\.0, 100\.0\]", said)
    assert "0 of 6 figures lie within" in said
    write_tables(tmp_path / "new", tables_of(PLAN, [], {"dev": {None: answers()}}, ""))
    with pytest.raises(SystemExit, match="2"):
        compare(tmp_path / "new", tmp_path / "published")
    assert "no figure of" in capsys.readouterr().err


def test_answers_survive_the_disk(tmp_path):
    kept = replace(answers(), limit=300)
    save_answers(tmp_path / "dev.json", kept)
    assert load_answers(tmp_path / "dev.json") == kept
