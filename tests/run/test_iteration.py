"""Compare an iteration's records with groups made by hand; test the spans of ranks."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest

from selfemo.config.schema import RewardConfig
from selfemo.corpora.conversation import Turn
from selfemo.megatron.step_stats import NOT_FIGURES, PolicyStats, StepStats
from selfemo.report.curves import ITERATION_CURVES
from selfemo.rewards.scoring import score_group
from selfemo.run.iteration import (
    component_means,
    episode_records,
    groups_without_ranking,
    policy_figures,
    role_figures,
)
from selfemo.run.spans import MAX_RANKS, PhaseSpans, chosen_ranks
from selfemo.selfplay.records import Episode, Opening
from tests.helpers.groups import CONTEXT, SCORE, recognizer_group, responder_group
from tests.helpers.scripted import LABELS

GROUPS = [
    score_group(group, RewardConfig(), SCORE, dict.fromkeys(LABELS, 1.0))
    for group in (
        recognizer_group(["joy", "anger", ""], ("joy",)),
        responder_group([("that is great", "joy"), ("joy", None)], ("joy",)),
    )
]
GROUPS = [
    replace(GROUPS[0], advantages=(1.0, -0.4, -0.6), loss_weight=0.5),
    replace(GROUPS[1], advantages=(0.7, -0.7), loss_weight=0.0),
]


def test_figures_are_means_over_the_samples_of_a_role():
    figures = role_figures(GROUPS)
    assert figures["siou_recognizer"] == pytest.approx(sum(GROUPS[0].scores) / 3)
    assert figures["siou_responder"] == pytest.approx(GROUPS[1].scores[0] / 2)
    assert figures["agreement_recognizer"] == pytest.approx(GROUPS[0].group.consensus.agreement)
    assert figures["completion_tokens_max_responder"] == max(
        len(s.completion_ids) for s in GROUPS[1].group.samples
    )
    assert figures["completion_tokens_recognizer"] == pytest.approx(
        sum(len(s.completion_ids) for s in GROUPS[0].group.samples) / 3
    )
    assert component_means(GROUPS)["recognizer_format"] == pytest.approx(2 / 3)
    assert component_means(GROUPS)["responder_format"] == pytest.approx(1 / 2)


POLICY_FIGURES = [field.name for field in fields(PolicyStats) if field.name not in NOT_FIGURES]


def test_every_figure_of_the_last_update_is_recorded_and_the_gap_to_the_engine_is_the_firsts():
    updates = [
        PolicyStats(step=StepStats(2.0, 1.0, bool(n), 9, 1e-4), **dict.fromkeys(POLICY_FIGURES, float(n)))
        for n in range(2)
    ]
    figures = policy_figures(updates)
    assert figures["learning_rate"] == 1e-4
    assert not figures["step_applied"]  # the first step was not applied
    assert {name: figures[name] for name in POLICY_FIGURES} == {
        name: 0.0 if name.startswith("logprob_gap") else 1.0 for name in POLICY_FIGURES
    }


def test_every_figure_of_an_update_has_a_curve_in_the_report():
    shown = {field for curve in ITERATION_CURVES for field in curve.fields}
    assert {*POLICY_FIGURES, "grad_norm", "learning_rate"} <= shown


def test_a_role_that_did_not_play_has_no_figures():
    assert not any(name.endswith("responder") for name in role_figures(GROUPS[:1]))


def test_a_group_of_weight_zero_teaches_nothing():
    assert groups_without_ranking(GROUPS) == 1


def test_a_candidate_keeps_its_own_reading_and_advantage():
    opening = Opening(1, "toy/train/1", tuple(CONTEXT), parent=7)
    episode = Episode(opening, tuple(g.group for g in GROUPS), (*CONTEXT, Turn("Ann", "that is great")))
    (record,) = episode_records(3, [episode], GROUPS, limit=2)
    assert (record["iteration"], record["parent"], record["seed_turns"], len(record["dialogue"])) == (
        3,
        7,
        2,
        3,
    )
    recognizer, responder = record["groups"]
    assert [c["advantage"] for c in recognizer["candidates"]] == [1.0, -0.4, -0.6]
    assert [c["advantage"] for c in responder["candidates"]] == [0.7, -0.7]
    assert [c["read"] for c in recognizer["candidates"]] == [["joy"], ["anger"], []]
    assert [c["read"] for c in responder["candidates"]] == [["joy"], []]
    assert responder["candidates"][1]["failed_gates"] == ["leak"]
    assert [c["total"] for c in recognizer["candidates"]] == list(GROUPS[0].totals)
    assert [c["weight"] for c in recognizer["candidates"] + responder["candidates"]] == [0.5] * 3 + [0.0] * 2


def test_steps_of_one_phase_are_one_span_until_another_comes_between():
    spans = PhaseSpans()
    for name, start, end in (("sft", 0, 1), ("sft", 1.2, 2), ("sync", 2, 3), ("sft", 3, 4), ("sft", 9, 10)):
        spans.add(name, start, end)
    assert spans._spans == [("sft", 0, 2), ("sync", 2, 3), ("sft", 3, 4), ("sft", 9, 10)]


def _gather_twice() -> list[dict]:
    import torch.distributed as dist

    spans = PhaseSpans()
    spans.add("rollout", 1.0, 2.0 + dist.get_rank())
    first = spans.gather()
    return [first, spans.gather()]


def test_the_main_rank_holds_every_ranks_spans_once(distributed):
    main, other = distributed(2, _gather_twice)
    assert main == [{"0": [("rollout", 1.0, 2.0)], "1": [("rollout", 1.0, 3.0)]}, {"0": [], "1": []}]
    assert other == [{}, {}]


def test_a_large_world_sends_some_ranks_evenly_spaced():
    assert chosen_ranks(3) == [0, 1, 2]
    chosen = chosen_ranks(1000)
    assert len(chosen) == MAX_RANKS
    assert chosen[0] == 0
    assert {b - a for a, b in pairwise(chosen)} <= {15, 16}
