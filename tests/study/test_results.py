"""Test intervals over seeds and dialogues, which are paired and wider than over dialogues alone.

Test the tables.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from selfemo.evaluation.intervals import bootstrap, paired_bootstrap, seeded_bootstrap
from tools.study.answers import ModelAnswers, SplitAnswers, load_answers, save_answers
from tools.study.plan import StudyPlan, Variant
from tools.study.render import describe_variants, plot_split, render_split
from tools.study.results import differences, figures_of

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


def answers() -> SplitAnswers:
    def models(variant: str, accuracy: float) -> list[ModelAnswers]:
        expression = None if variant == "start" else 0.25
        return [
            ModelAnswers(variant, seed, noisy(accuracy, seed), 0.5, 1.0, 0.4, expression) for seed in (2, 1)
        ]

    return SplitAnswers("toy", "dev", LABELS, GOLD, DIALOGUES, (*models("start", 0.5), *models("good", 0.9)))


PLAN = StudyPlan(
    base="b",
    seeds=[1, 2],
    start=["sft.steps=3"],
    self_play=[],
    variants=[Variant("good", "better")],
    baselines=["start"],
)


def test_figures_and_differences_agree():
    start, good = figures_of(answers(), ("start", "good"))
    (difference,) = differences(answers(), ("start", "good"), ["start"])
    assert (good.seeds, good.expression, start.expression) == ((1, 2), 0.25, None)
    for a, b, d in zip(good.intervals, start.intervals, difference.intervals, strict=True):
        assert d.value == pytest.approx(a.value - b.value)
    assert all(interval.excludes_zero for interval in difference.intervals)


def test_the_page_shows_every_variant_and_marks_what_excludes_zero(tmp_path):
    text = render_split(answers(), PLAN)
    assert "| `good` | **+" in text
    assert text.count("| `good` |") == 2
    assert "`sft.steps=3`" in describe_variants(PLAN)
    plot_split(answers(), PLAN, tmp_path / "dev.png")
    assert (tmp_path / "dev.png").read_bytes().startswith(b"\x89PNG")


def test_answers_survive_the_disk(tmp_path):
    kept = replace(answers(), limit=300)
    save_answers(tmp_path / "dev.json", kept)
    assert load_answers(tmp_path / "dev.json") == kept
