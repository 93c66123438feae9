"""Test a reward component that is added as docs/extending.md says.

It changes training, is recorded everywhere, must stay within its bounds, and survives a resume.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfemo.config.schema import AlgorithmConfig, RewardConfig, RunConfig
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.records.reading import read_run
from selfemo.report.curves import curves
from selfemo.report.page import render
from selfemo.rewards.components import COMPONENTS
from selfemo.rewards.scoring import score_group
from selfemo.run.guards import check_rewards
from selfemo.run.trackers import Tracking
from tests.flywheel.test_flywheel import Run
from tests.helpers.groups import SCORE, recognizer_group, responder_group
from tests.helpers.learning import gradients
from tests.helpers.made_run import make_run
from tests.helpers.scripted import LABELS
from tests.run.test_tracking import tensorboard_points

CONFIG = RunConfig(algorithm=AlgorithmConfig(kl_beta=0.0))
GROUPS = [
    recognizer_group(["joy", "joy, neutral", "anger", "neutral"], ("joy",)),
    responder_group([("that is great", "joy"), ("so so", "neutral")], ("joy",)),
]
ONE_LABEL, TWO_LABELS = 0, 1


def test_the_component_changes_the_gradient_of_its_role_alone(add_brevity):
    before = gradients(GROUPS, CONFIG)
    add_brevity()
    after = gradients(GROUPS, CONFIG)
    assert all(not torch.equal(a, b) for a, b in zip(before[:4], after[:4], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[4:], after[4:], strict=True)), "the responder's"


def test_what_the_component_pays_for_becomes_likelier(add_brevity):
    """Take a step down the gradient where one label and two would be paid alike without the
    component.

    The component then raises the logprob of one label over that of two.
    """
    groups = [recognizer_group(["joy", "joy, neutral"], ("joy", "neutral"))]
    alike = replace(CONFIG, reward=RewardConfig(alignment_weight=0.0, consistency_weight=0.0))
    assert not any(gradient.any() for gradient in gradients(groups, alike))
    add_brevity()
    ids = [sample.completion_ids for sample in groups[0].samples]
    at_targets = [g[range(len(t)), list(t)] for g, t in zip(gradients(groups, alike), ids, strict=True)]
    assert (at_targets[ONE_LABEL] < 0).all()
    assert (at_targets[TWO_LABELS] > 0).all()


def test_a_weight_of_zero_changes_no_bit(add_brevity):
    before = gradients(GROUPS, CONFIG)
    add_brevity(weight=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(GROUPS, CONFIG), strict=True))


def test_a_weight_may_be_a_field_of_the_configuration(add_brevity):
    add_brevity(weight="expression_weight")
    paid, unpaid = (
        gradients(GROUPS[:1], replace(CONFIG, reward=RewardConfig(expression_weight=weight)))
        for weight in (0.3, 0.0)
    )
    assert not torch.equal(paid[0], unpaid[0])


def test_a_value_out_of_the_components_bounds_is_refused_by_its_name(add_brevity):
    add_brevity(bounds=(0.0, 0.5))
    scored = score_group(GROUPS[0], CONFIG.reward, SCORE, dict.fromkeys(LABELS, 1.0))
    with pytest.raises(
        ArithmeticError, match=r"brevity of recognizer sample 0, .* is 1.0, expected 0 to 0.5"
    ):
        check_rewards([scored], CONFIG.reward)


def test_a_component_with_a_value_too_few_is_named(add_brevity):
    add_brevity(function=lambda group: [1.0])
    with pytest.raises(
        ValueError, match="reward component brevity returned 1 values for 4 samples of a recognizer group"
    ):
        score_group(GROUPS[0], CONFIG.reward, SCORE, dict.fromkeys(LABELS, 1.0))


def test_metrics_samples_report_and_tensorboard_show_it(add_brevity, run_dir: Path):
    # A penalty reaches below the start of the axis.
    add_brevity(bounds=(-1.0, 0.0), function=lambda group: [-0.5] * len(group.readings))
    records = read_run(make_run(run_dir))
    iterations = records.of("iteration")
    assert all(record["reward_brevity"] == -0.5 for record in iterations)
    candidates = [
        c
        for d in records.dialogues
        for g in d["groups"]
        if g["role"] == "recognizer"
        for c in g["candidates"]
    ]
    assert all(list(c["rewards"]) == ["alignment", "consistency", "format", "brevity"] for c in candidates)
    assert "brevity from -0.5 to -0.5" in summary_of("Reward by component", records)
    assert '<th scope="col" class="n">brevity</th>' in render(records)
    tracking = Tracking(run_dir / "metrics.jsonl", records.config)
    tracking.log(iterations[-1])  # the first call reads the records that the file already holds
    tracking.close()
    assert dict(tensorboard_points(run_dir)["reward/reward_brevity"]) == dict.fromkeys(
        range(len(iterations)), -0.5
    )


def test_a_component_of_both_roles_is_recorded_by_role(
    add_brevity, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(COMPONENTS, "responder", (*COMPONENTS["responder"], add_brevity()))
    records = read_run(make_run(run_dir))
    assert {"reward_recognizer_brevity", "reward_responder_brevity"} <= set(records.of("iteration")[0])
    assert "brevity, responder from" in summary_of("Reward by component", records)


def test_a_report_shows_a_component_that_it_does_not_know_and_one_that_came_with_a_resume(run_dir: Path):
    metrics = make_run(run_dir) / "metrics.jsonl"
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    late = [event | ({"reward_wit": 0.25} if event.get("iteration", 0) >= 2 else {}) for event in events]
    metrics.write_text("".join(json.dumps(event) + "\n" for event in late))
    assert "wit from 0.25 to 0.25" in summary_of("Reward by component", read_run(run_dir))


def test_a_run_goes_on_with_it_as_if_it_had_not_stopped(add_brevity, tmp_path: Path):
    add_brevity()
    whole, first = Run(tmp_path / "whole.sqlite"), Run(tmp_path / "parts.sqlite")
    whole.iterate(range(4))
    first.iterate(range(2))
    first.flywheel.close()
    Run(tmp_path / "parts.sqlite").iterate(range(1, 4))  # iteration 1 was recorded before the stop
    records = [list(FlywheelStore(tmp_path / f"{name}.sqlite").find(Filter())) for name in ("whole", "parts")]
    assert records[0] == records[1]
    assert {r.components for r in records[0] if r.role == "recognizer"} == {
        ("alignment", "consistency", "format", "brevity")
    }


def test_a_run_that_began_without_it_goes_on_with_it(add_brevity, tmp_path: Path):
    path = tmp_path / "flywheel.sqlite"
    first = Run(path)
    first.iterate(range(2))
    first.flywheel.close()
    add_brevity()
    second = Run(path)
    second.iterate(range(2, 4))
    found = {
        (r.iteration >= 2, r.components[-1]) for r in FlywheelStore(path).find(Filter(role="recognizer"))
    }
    assert found == {(False, "format"), (True, "brevity")}


def summary_of(title: str, records) -> str:
    """Find the sentence that a chart has for screen readers."""
    return next(chart.summary for chart in curves(records) if chart.title == title)
