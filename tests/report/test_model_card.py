"""Test the model card: it asks as training asked, and says what a vote was measured to bring."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfemo.config.schema import ModelConfig
from selfemo.corpora.labelled import label_counts
from selfemo.evaluation.intervals import Interval
from selfemo.evaluation.voting import VotingReport
from selfemo.report.model_card import EXAMPLE, model_card
from selfemo.report.vote_card import BEGIN, CARD_NAME, END, NOT_MEASURED, record_vote
from selfemo.selfplay.prompts import PromptBuilder
from tests.helpers.made_run import CONFIG, CORPUS
from tests.helpers.scripted import LABELS, CharEncoder

FIGURES = {"accuracy": 0.5, "weighted_f1": 0.25, "macro_f1": 0.125, "n": 100}
SUMMARY: dict[str, Any] = {
    "corpus": "toy",
    "training_dialogues": asdict(label_counts(CORPUS)),
    "eval": {
        "majority": FIGURES | {"accuracy": 0.4},
        "start": FIGURES | {"accuracy": 0.0},
        "sft": FIGURES,
        "final": FIGURES | {"accuracy": 0.8},
    },
}
NOBODY: Any = None


def _card(**summary: Any) -> str:
    return model_card(CONFIG, LABELS, SUMMARY | summary)


def _intervals(accuracy: float, width: float = 0.0) -> tuple[Interval, ...]:
    values = {"siou": 0.9, "accuracy": accuracy, "weighted_f1": 0.25, "macro_f1": 0.125}
    return tuple(Interval(name, v, v - width, v + width, 0.95) for name, v in values.items())


def _voting(gain: float) -> VotingReport:
    views = ("plain", "short")
    return VotingReport(views, NOBODY, _intervals(0.5 + gain), _intervals(gain, 0.03125), ())


def test_the_prompt_on_the_card_is_the_one_that_training_sent():
    sent = CharEncoder().decode(PromptBuilder(CharEncoder(), LABELS, 3, 200).recognize(EXAMPLE))
    assert f"```text\n{sent}\n```" in _card()


def test_the_header_is_yaml_that_the_hub_reads():
    before, header, _ = _card().split("---\n", 2)
    read = yaml.safe_load(header)
    assert before == ""
    assert (read["language"], read["library_name"]) == ("en", "transformers")
    assert "license" not in read, "that of the weights it started from is not known"


def test_each_stage_stands_with_its_interval_and_the_majority_class():
    lines = [line for line in _card().splitlines() if "±" in line and line.startswith("|")]
    assert lines == [
        "| majority class | 0.400 ± 0.096 | 0.250 | 0.125 |",
        "| start | 0.000 ± 0.000 | 0.250 | 0.125 |",
        "| SFT | 0.500 ± 0.098 | 0.250 | 0.125 |",
        "| after self-play | 0.800 ± 0.078 | 0.250 | 0.125 |",
    ]


def test_the_share_of_labels_is_told_and_no_path_of_this_machine():
    assert "20 dialogues with labels (60 turns), 0 without" in _card()
    config = replace(CONFIG, model=ModelConfig(path="/home/ann/models/smollm2"))
    card = model_card(config, LABELS, SUMMARY)
    assert "Start: `smollm2`." in card
    assert "/home" not in card


def test_a_vote_replaces_what_was_said_of_voting_and_nothing_else(tmp_path: Path):
    path = tmp_path / CARD_NAME
    path.write_text(_card() + "\nA user's own lines.\n", encoding="utf-8")
    whole = path.read_text(encoding="utf-8")
    assert NOT_MEASURED in whole
    for gain in (0.25, 0.125):  # a second measurement takes the place of the first
        assert record_vote(tmp_path, "toy dev, 100 turns", _intervals(0.5), _voting(gain))
    card = path.read_text(encoding="utf-8")
    assert (card.split(BEGIN)[0], card.split(END)[1]) == (whole.split(BEGIN)[0], whole.split(END)[1])
    table = [line for line in card.split(BEGIN)[1].splitlines() if line.startswith("| ")]
    assert table[2:] == [
        "| one view | 0.500 | 0.250 | 0.125 |",
        "| vote over 2 views (plain, short) | 0.625 | 0.250 | 0.125 |",
        "| difference | +0.125 [+0.094, +0.156] | +0.250 [+0.219, +0.281] | +0.125 [+0.094, +0.156] |",
    ]
    assert NOT_MEASURED not in card
    assert "toy dev, 100 turns" in card


@pytest.mark.parametrize("text", [None, "# Another model\n", f"{END}\n{BEGIN}\n"])
def test_a_card_that_is_not_ours_stays_as_it_is(tmp_path: Path, text: str | None):
    path = tmp_path / CARD_NAME
    if text is not None:
        path.write_text(text)
    assert not record_vote(tmp_path, "toy dev", _intervals(0.5), _voting(0.25))
    assert (path.read_text() if path.exists() else None) == text


def test_a_card_that_is_no_text_stays_as_it_is(tmp_path: Path):
    (tmp_path / CARD_NAME).write_bytes(b"\xff\xfe")
    assert not record_vote(tmp_path, "toy dev", _intervals(0.5), _voting(0.25))
    assert (tmp_path / CARD_NAME).read_bytes() == b"\xff\xfe"
