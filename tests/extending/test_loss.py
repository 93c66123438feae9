"""Test a loss preset that is added as docs/extending.md says.

It can be named, trains, and has a title in the report.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.config.schema import AlgorithmConfig, RunConfig
from selfemo.grpo.advantages import loss_config, training_samples, with_advantages
from selfemo.kernels import PRESETS, Preset
from selfemo.records.reading import read_run
from selfemo.report.page import render
from selfemo.rewards.scoring import score_group
from tests.helpers.groups import SCORE, recognizer_group
from tests.helpers.learning import gradients
from tests.helpers.made_run import CONFIG, make_run
from tests.helpers.scripted import LABELS

ROOT = Path(__file__).resolve().parents[2]
UNEQUAL = [
    recognizer_group(["joy", "joy, neutral", "anger", "neutral"], ("joy",)),
    recognizer_group(["joy", "anger"], None),
]


def with_loss(name: str, **algorithm: object) -> RunConfig:
    return RunConfig(algorithm=AlgorithmConfig(loss=name, **algorithm))


def test_a_configuration_may_name_it(rloo):
    assert load_config(None, [f"algorithm.loss={rloo}"]).algorithm.loss == "rloo"


@pytest.mark.parametrize(("field", "choice"), [("algorithm.loss", "self_grpo"), ("corpus.name", "everyday")])
def test_a_name_that_no_registry_holds_is_refused_in_one_line_with_the_choices(field, choice):
    wrong = choice[:-1]
    with pytest.raises(
        UserError,
        match=rf"^configuration: {field}='{wrong}': "
        rf"expected one of .*{choice}.*\(did you mean '{choice}'\?\)",
    ) as refused:
        load_config(None, [f"{field}={wrong}"])
    assert "\n" not in str(refused.value)


def test_its_gradient_is_that_of_its_settings(rloo):
    """Compare the new preset with DAPO without its clip and with the same baseline.

    On policy nothing is clipped, so that the two must have one gradient.
    """
    found = gradients(UNEQUAL, with_loss(rloo))
    same = gradients(UNEQUAL, with_loss("dapo", normalise="leave_one_out"))
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
    assert not torch.equal(found[0], gradients(UNEQUAL, with_loss("dapo"))[0])


def test_the_report_calls_it_by_its_title(rloo, run_dir: Path):
    page = render(read_run(make_run(run_dir, config=replace(CONFIG, algorithm=AlgorithmConfig(loss=rloo)))))
    assert "change by RLOO" in page


def test_the_report_of_a_run_whose_preset_is_gone_calls_it_by_its_name(run_dir: Path):
    page = render(
        read_run(make_run(run_dir, config=replace(CONFIG, algorithm=AlgorithmConfig(loss="from_elsewhere"))))
    )
    assert "change by from_elsewhere" in page


@pytest.mark.parametrize("gated", [True, False])
def test_only_a_gated_preset_gates_and_weighs_groups(monkeypatch: pytest.MonkeyPatch, gated):
    monkeypatch.setitem(PRESETS, "mine", Preset("Mine", {}, gated=gated))
    flat, ranked = recognizer_group(["joy", "joy"], ("joy",)), recognizer_group(["joy", "anger"], ("joy",))
    config = with_loss("mine", weight_by_consistency=True)
    scored = [
        score_group(group, config.reward, SCORE, dict.fromkeys(LABELS, 1.0)) for group in (flat, ranked)
    ]
    agreement = scored[1].group.consensus.agreement
    found = [sample.weight for sample in training_samples(with_advantages(scored, config.algorithm))]
    assert found == (pytest.approx([0.0, 0.0, agreement, agreement]) if gated else [1.0] * 4)


def test_a_preset_that_divides_by_a_length_is_given_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, "mine", Preset("Mine", {"aggregation": "sequence_sum"}))
    play = RunConfig().selfplay
    assert loss_config(with_loss("mine").algorithm, play).max_length == max(
        play.max_recognizer_tokens, play.max_utterance_tokens
    )


def test_no_code_outside_the_table_looks_at_a_presets_name():
    """Search for the preset's name in quotes: any hit is a special case.

    Defaults, documentation and the table of the kernels are left out.
    """
    found = []
    for path in [*(ROOT / "selfemo").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        place = path.relative_to(ROOT)
        if place.is_relative_to("selfemo/kernels") or place.name == "config.py":
            continue
        text = path.read_text(encoding="utf-8")
        found += [
            f"{place}: {name}"
            for name in PRESETS
            if re.search(rf"[=!]= *[\"']{name}[\"']|[\"']{name}[\"'] *(?:[=!]=|:)", text)
        ]
    assert found == []
