"""Test evaluation figures against scikit-learn and by hand.

Format failures count as wrong, and intervals have their coverage and are paired.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from selfemo.common.errors import UserError
from selfemo.config.schema import SelfPlayConfig
from selfemo.emotions.answer import Answer, FormatFailure
from selfemo.evaluation.calibration import calibrate, likelihood_confidence, vote_confidence
from selfemo.evaluation.expression import evaluate_expression
from selfemo.evaluation.intervals import bootstrap, paired_bootstrap
from selfemo.evaluation.metrics import NO_ANSWER, classify, majority_baseline
from selfemo.evaluation.recognition import evaluate_recognition, read_likeliest, sample_readings
from selfemo.evaluation.turns import evaluation_turns
from selfemo.evaluation.voting import vote_by_generation, vote_by_likelihood
from selfemo.rollout.api import GenerationRequest
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.views import VIEWS, view_named
from tests.helpers.groups import SCORE
from tests.helpers.scripted import LABELS, THINK, CharEncoder, ScriptedGenerator, conversation

CONFIG = SelfPlayConfig(max_answer_tokens=20, max_utterance_tokens=60, recognizer_group_size=4)
PROMPTS = PromptBuilder(CharEncoder(), LABELS, 2, 80)
DEV = [
    conversation("1", "Ann[joy]: yay it works", "Bo[neutral]: ok then", "Bo: hm", split="dev"),
    conversation("2", "Ann[neutral]: so", "Bo[joy, sadness]: well yay", "Ann[sadness]: oh no", split="dev"),
]
golds = st.lists(st.sampled_from(LABELS), min_size=1, max_size=40)


def by_word(prompt: str, request: GenerationRequest) -> str:
    last = prompt.splitlines()[-1]
    return "joy" if "yay" in last else "Sad!" if "oh" in last else "neutral"


def test_a_split_is_read_in_one_greedy_call_with_earlier_turns_only() -> None:
    generator = ScriptedGenerator(by_word)
    report = evaluate_recognition(generator, PROMPTS, evaluation_turns(DEV), CONFIG, SCORE)
    assert len(generator.calls) == 1
    prompts = [CharEncoder().decode(request.prompt_ids).splitlines()[2:] for request in generator.calls[0]]
    assert prompts[0] == ["> Ann: yay it works"]
    assert prompts[4] == ["Ann: so", "Bo: well yay", "> Ann: oh no"]
    assert all(request.temperature == 0 for request in generator.calls[0])
    assert (report.n, report.accuracy, report.format_failure_rate, report.context) == (5, 0.8, 0.2, "causal")
    assert report.siou == pytest.approx((3 + 1.05 / 2.05 + 0) / 5)
    assert report.exact_match == 0.6
    assert report.predicted == ("joy", "neutral", "neutral", "joy", NO_ANSWER)


def test_with_thinking_a_split_is_read_after_the_thoughts() -> None:
    config = replace(CONFIG, thinking=True, max_thinking_tokens=30)
    generator = ScriptedGenerator(lambda prompt, request: f"<think>hm</think>\n\n{by_word(prompt, request)}")
    report = evaluate_recognition(
        generator, replace(PROMPTS, thinking=True), evaluation_turns(DEV), config, SCORE
    )
    assert report.predicted == ("joy", "neutral", "neutral", "joy", NO_ANSWER)
    assert {(request.max_tokens, request.prompt_ids[-1]) for request in generator.calls[0]} == {(50, THINK)}


@settings(max_examples=25)
@given(golds, st.randoms(use_true_random=False))
def test_f1_equals_scikit_learns_and_failures_only_ever_cost(gold: list[str], rng: random.Random) -> None:
    predicted = [rng.choice([*LABELS, NO_ANSWER]) for _ in gold]
    figures = classify(gold, predicted, LABELS)
    assert figures.weighted_f1 == pytest.approx(
        f1_score(gold, predicted, average="weighted", zero_division=0)
    )
    assert figures.accuracy == sum(a == b for a, b in zip(gold, predicted)) / len(gold)
    assert (
        sum(sum(row) for row in figures.confusion)
        == figures.n
        == sum(row.support for row in figures.per_label)
    )
    healed = classify(gold, [g if p == NO_ANSWER else p for g, p in zip(gold, predicted)], LABELS)
    assert healed.accuracy >= figures.accuracy


def test_macro_f1_averages_over_the_labels_that_occur() -> None:
    figures = classify(["joy", "joy", "anger"], ["joy", "sadness", "anger"], LABELS)
    assert figures.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert figures.confusion[LABELS.index("joy")] == (0, 1, 0, 1, 0)
    assert figures.per_label[LABELS.index("sadness")].predicted == 1


def test_signs_of_collapse() -> None:
    collapsed = classify(["joy", "anger"], ["neutral", "neutral"], LABELS)
    spread = classify(["joy", "anger"], ["joy", "neutral"], LABELS)
    assert (collapsed.label_entropy, collapsed.neutral_share) == (0.0, 1.0)
    assert (spread.label_entropy, spread.neutral_share) == (pytest.approx(math.log(2)), 0.5)
    assert classify(["joy"], [NO_ANSWER], LABELS).neutral_share == 0.0


@pytest.mark.parametrize(
    ("gold", "predicted", "message"),
    [
        ([], [], "gold is empty"),
        (["joy"], [], "predicted has 0"),
        (["fun"], ["joy"], r"gold\[0\]"),
        (["joy"], ["fun"], r"predicted\[0\]"),
    ],
)
def test_unusable_predictions_are_named(gold: list[str], predicted: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classify(gold, predicted, LABELS)


def test_the_majority_baseline() -> None:
    baseline = majority_baseline(evaluation_turns(DEV))
    assert (baseline.label, baseline.n, baseline.accuracy) == ("joy", 5, 0.4)
    assert baseline.macro_f1 == pytest.approx((2 * 0.4 / 1.4) / 3)


def test_which_turns_are_evaluated() -> None:
    turns = evaluation_turns(DEV)
    assert [(turn.dialogue, turn.index) for turn in turns] == [
        ("toy/dev/1", 0),
        ("toy/dev/1", 1),
        *(("toy/dev/2", i) for i in range(3)),
    ]
    assert turns[1].next_turn is not None
    assert turns[4].next_turn is None
    assert evaluation_turns(DEV, limit=2) == turns[:2]
    with pytest.raises(UserError, match="no annotated turn"):
        evaluation_turns([conversation("1", "A: x")])


@settings(max_examples=20)
@given(golds, st.randoms(use_true_random=False))
def test_bootstrap_centres_on_the_figures_themselves(gold: list[str], rng: random.Random) -> None:
    first, second = ([rng.choice([*LABELS, NO_ANSWER]) for _ in gold] for _ in range(2))
    dialogues = [str(i // 3) for i in range(len(gold))]
    a, b = classify(gold, first, LABELS), classify(gold, second, LABELS)
    single = bootstrap(gold, first, dialogues, seed=1, resamples=50)
    assert [interval.value for interval in single] == pytest.approx([a.accuracy, a.weighted_f1, a.macro_f1])
    paired = paired_bootstrap(gold, first, second, dialogues, seed=1, resamples=50)
    expected = [a.accuracy - b.accuracy, a.weighted_f1 - b.weighted_f1, a.macro_f1 - b.macro_f1]
    assert [interval.value for interval in paired] == pytest.approx(expected)


def test_pairing_and_dialogues_decide_the_width() -> None:
    rng = random.Random(0)
    gold = [rng.choice(LABELS) for _ in range(400)]
    worse = [g if rng.random() < 0.6 else "neutral" for g in gold]
    better = [g if rng.random() < 0.4 else w for g, w in zip(gold, worse)]
    alone = [str(i) for i in range(400)]
    difference = paired_bootstrap(gold, better, worse, alone, seed=2)[0]
    assert difference.excludes_zero
    assert not paired_bootstrap(gold, worse, worse, alone, seed=2)[0].excludes_zero
    single = bootstrap(gold, worse, alone, seed=2)[0]
    deviation = math.sqrt(single.value * (1 - single.value) / 400)
    assert single.high - single.low == pytest.approx(2 * 1.96 * deviation, rel=0.1), (
        "the binomial interval, where turns are independent"
    )
    assert difference.high - difference.low < single.high - single.low
    doubled = bootstrap(gold * 4, worse * 4, alone * 4, seed=2)[0]
    assert doubled.high - doubled.low == pytest.approx(single.high - single.low, rel=0.15), (
        "repeating a dialogue's turns adds no evidence"
    )


def test_calibration_by_hand_and_at_its_best() -> None:
    result = calibrate([0.9, 0.9, 0.2, 1.0], [True, False, False, True], bins=10)
    assert result.ece == pytest.approx((2 * 0.4 + 0.2 + 0) / 4)
    assert [row.count for row in result.bins] == [0, 1, 0, 0, 0, 0, 0, 0, 2, 1]
    rng = random.Random(1)
    confidence = [rng.random() for _ in range(20_000)]
    assert calibrate(confidence, [rng.random() < c for c in confidence]).ece < 0.02
    with pytest.raises(ValueError, match=r"confidence\[0\]"):
        calibrate([1.5], [True])
    with pytest.raises(ValueError, match="expected equal"):
        calibrate([], [])


def test_confidences_from_votes_and_likelihoods() -> None:
    votes = [Answer(("joy", "anger")), Answer(("joy",)), Answer(("anger",)), FormatFailure("empty")]
    assert vote_confidence(votes) == ("joy", 0.5)
    assert vote_confidence([FormatFailure("empty")]) == (NO_ANSWER, 1.0)
    assert likelihood_confidence({"joy": -1.0, "anger": -1.0 - math.log(3)}) == ("joy", pytest.approx(0.75))
    assert read_likeliest([{"joy": -2.0, "anger": -1.0}]) == [Answer(("anger",))]


def test_views_vote_on_each_turn_in_one_greedy_call() -> None:
    """The plain view is wrong on every turn, the two others are right where they agree."""

    def by_view(prompt: str, request: GenerationRequest) -> str:
        return "anger" if "Ann: " in prompt or "Bo: " in prompt else by_word(prompt, request)

    turns, generator = evaluation_turns(DEV), ScriptedGenerator(by_view)
    views = ("plain", "anonymous", "second")
    with_second = (*VIEWS, replace(view_named("anonymous"), name="second"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfemo.selfplay.views.VIEWS", with_second)
        read = evaluate_recognition(generator, PROMPTS, turns, CONFIG, SCORE).readings
        voted = vote_by_generation(generator, PROMPTS, turns, CONFIG, SCORE, views, seed=3, plain=read)
    assert [len(call) for call in generator.calls] == [len(turns), 2 * len(turns)], "plain is asked once"
    assert all(request.temperature == 0 for call in generator.calls for request in call)
    plain, second, third = ([r.labels if isinstance(r, Answer) else () for r in view] for view in voted.alone)
    assert set(plain) == {("anger",)}
    assert second == third == [("joy",), ("neutral",), ("neutral",), ("joy",), ()]
    together = [r.labels for r in voted.together if isinstance(r, Answer)]
    assert together == [("joy",), ("neutral",), ("neutral",), ("joy",), ("anger",)], "failures do not vote"


def test_likelihoods_of_views_are_summed_as_shares() -> None:
    """One view is far surer than two: with summed logprobs it would win alone. Raw scales must not count."""
    rows = [
        [{"anger": math.log(0.98) - 9, "joy": math.log(0.02) - 9}],
        [{"anger": math.log(0.1), "joy": math.log(0.9)}],
        [{"anger": math.log(0.3), "joy": math.log(0.7)}],
    ]
    voted = vote_by_likelihood(rows)
    assert voted.alone == ((Answer(("anger",)),), (Answer(("joy",)),), (Answer(("joy",)),))
    assert voted.together == (Answer(("joy",)),)


def test_sampled_readings_come_in_groups_of_one_call() -> None:
    generator = ScriptedGenerator(by_word)
    groups = sample_readings(generator, PROMPTS, evaluation_turns(DEV), CONFIG, run_seed=3)
    assert [len(group) for group in groups] == [4] * 5
    assert len({request.seed for request in generator.calls[0]}) == 20


def test_expression_is_read_by_the_frozen_model_without_the_target() -> None:
    responder = ScriptedGenerator(
        lambda prompt, _: "such joy today" if "showing joy" in prompt else "fine by me then"
    )
    recognizer = ScriptedGenerator(lambda prompt, _: "neutral")
    report = evaluate_expression(
        responder, recognizer, PROMPTS, evaluation_turns(DEV), CONFIG, SCORE, run_seed=1
    )
    assert [reply.target for reply in report.replies] == [("neutral",), ("joy", "sadness"), ("sadness",)]
    assert report.gate_failures == (("leak", 1),)
    assert report.siou == pytest.approx((1 + 0 + 0.05 / 2.05) / 3)
    assert report.primary_hit_rate == pytest.approx(1 / 3)
    assert report.distinct_replies == pytest.approx(2 / 3)
    assert len(recognizer.calls[0]) == 2
    assert all("showing" not in CharEncoder().decode(request.prompt_ids) for request in recognizer.calls[0])
    with pytest.raises(UserError, match="another speaker"):
        evaluate_expression(
            responder, recognizer, PROMPTS, evaluation_turns(DEV)[-1:], CONFIG, SCORE, run_seed=1
        )


def test_the_reader_of_replies_thinks_where_it_was_trained_to() -> None:
    """Prompt the reader of replies by its own settings, not by those of the evaluated model.

    If that model does not think, the limits of its settings would cut the reader's thoughts, and
    every reply would score 0.
    """
    responder = ScriptedGenerator(lambda prompt, _: "fine by me then")
    recognizer = ScriptedGenerator(lambda prompt, _: "<think>a long thought about this</think>\n\nneutral")
    thinker = replace(CONFIG, thinking=True, max_thinking_tokens=50)
    prompts = replace(PROMPTS, thinking=True)
    report = evaluate_expression(
        responder, recognizer, PROMPTS, evaluation_turns(DEV), CONFIG, SCORE, 1, prompts, thinker
    )
    assert {request.max_tokens for request in recognizer.calls[0]} == {70}
    assert [reply.reading for reply in report.replies] == [Answer(("neutral",))] * 3
    assert {request.max_tokens for request in responder.calls[0]} == {CONFIG.max_utterance_tokens}
