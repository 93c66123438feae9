"""Test the bundled corpus as data: its form, its splits, and the counts that its README states."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from selfemo.corpora.overlap import overlap_key

EVERYDAY = Path(__file__).resolve().parents[2] / "examples" / "data" / "everyday"
LABELS = json.loads((EVERYDAY / "labels.json").read_text())
DIALOGUES = {
    split: [json.loads(line) for line in (EVERYDAY / f"{split}.jsonl").open()]
    for split in ("train", "dev", "test")
}
EVERY_DIALOGUE: list[dict[str, Any]] = [dialogue for split in DIALOGUES.values() for dialogue in split]


@pytest.mark.parametrize("dialogue", EVERY_DIALOGUE, ids=lambda dialogue: dialogue["id"])
def test_every_turn_is_well_formed(dialogue: dict[str, Any]) -> None:
    assert 4 <= len(dialogue["turns"]) <= 9
    assert len({turn["speaker"] for turn in dialogue["turns"]}) in (2, 3)
    for turn in dialogue["turns"]:
        assert turn["text"] == turn["text"].strip() != ""
        assert turn["labels"]
        assert set(turn["labels"]) <= set(LABELS)
        assert len(set(turn["labels"])) == len(turn["labels"])
        if "votes" in turn:
            ranked = [turn["votes"][label] for label in turn["labels"]]
            assert set(turn["votes"]) == set(turn["labels"])
            assert ranked == sorted(ranked, reverse=True)


def test_the_splits_have_their_sizes() -> None:
    assert len(DIALOGUES["train"]) >= 160
    assert len(DIALOGUES["dev"]) == len(DIALOGUES["test"]) == 40


def test_no_dialogue_or_text_stands_twice() -> None:
    assert len({dialogue["id"] for dialogue in EVERY_DIALOGUE}) == len(EVERY_DIALOGUE) >= 240
    keys = Counter(overlap_key(turn["text"]) for dialogue in EVERY_DIALOGUE for turn in dialogue["turns"])
    assert [key for key, times in keys.items() if times > 1] == []


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_label_is_primary_somewhere_in_every_split(split: str) -> None:
    assert {turn["labels"][0] for dialogue in DIALOGUES[split] for turn in dialogue["turns"]} == set(LABELS)
    assert any(len(turn["labels"]) > 1 for dialogue in DIALOGUES[split] for turn in dialogue["turns"])


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_no_label_is_rare_and_neutral_is_no_majority(split: str) -> None:
    primary = Counter(turn["labels"][0] for dialogue in DIALOGUES[split] for turn in dialogue["turns"])
    assert min(primary.values()) / primary.total() > 0.05
    assert primary["neutral"] / primary.total() < 0.35


def test_the_readme_states_the_counts() -> None:
    spec = importlib.util.spec_from_file_location("everyday_counts", EVERYDAY / "counts.py")
    assert spec is not None
    assert spec.loader is not None
    counts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counts)
    assert counts.table() in (EVERYDAY / "README.md").read_text()
