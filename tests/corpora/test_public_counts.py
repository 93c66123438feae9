"""Test that the public corpora are read whole.

Every count equals that of the published description, and both forms of EmoryNLP have equal content.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from selfemo.corpora.problems import raise_first
from selfemo.corpora.readers.emorynlp import read_emorynlp_split
from selfemo.corpora.registry import load_corpus

EXPECTED = {
    "meld": {
        "train": (
            1038,
            {
                "neutral": 4710,
                "joy": 1743,
                "surprise": 1205,
                "anger": 1109,
                "sadness": 683,
                "disgust": 271,
                "fear": 268,
            },
        ),
        "dev": (
            114,
            {
                "neutral": 470,
                "joy": 163,
                "surprise": 150,
                "anger": 153,
                "sadness": 111,
                "disgust": 22,
                "fear": 40,
            },
        ),
        "test": (
            280,
            {
                "neutral": 1256,
                "joy": 402,
                "surprise": 281,
                "anger": 345,
                "sadness": 208,
                "disgust": 68,
                "fear": 50,
            },
        ),
    },
    "emorynlp": {
        "train": (
            713,
            {
                "neutral": 3034,
                "joyful": 2184,
                "scared": 1285,
                "mad": 1076,
                "peaceful": 900,
                "powerful": 784,
                "sad": 671,
            },
        ),
        "dev": (
            99,
            {
                "neutral": 393,
                "joyful": 289,
                "scared": 178,
                "mad": 143,
                "peaceful": 132,
                "powerful": 134,
                "sad": 75,
            },
        ),
        "test": (
            85,
            {
                "neutral": 349,
                "joyful": 282,
                "scared": 182,
                "mad": 113,
                "peaceful": 159,
                "powerful": 145,
                "sad": 98,
            },
        ),
    },
}


@pytest.mark.parametrize("name", ["meld", "emorynlp"])
def test_counts_equal_the_published_ones(name: str, data_root: Path) -> None:
    corpus = load_corpus(name, data_root=data_root)
    for split, (dialogues, label_counts) in EXPECTED[name].items():
        conversations = corpus.split(split)
        assert len(conversations) == dialogues
        assert Counter(turn.labels for c in conversations for turn in c.turns) == {
            (k,): n for k, n in label_counts.items()
        }
    assert len({c.key for c in corpus.conversations}) == len(corpus.conversations)


def test_meld_texts_are_normalised_and_in_row_order(data_root: Path) -> None:
    first = load_corpus("meld", data_root=data_root).split("train")[0]
    assert (
        first.turns[0].text
        == "also I was the point person on my company's transition from the KL-5 to GR-6 system."
    )
    assert [turn.speaker for turn in first.turns[:4]] == [
        "Chandler",
        "The Interviewer",
        "Chandler",
        "The Interviewer",
    ]
    texts = [t.text for c in load_corpus("meld", data_root=data_root).conversations for t in c.turns]
    assert not [text for text in texts if set(text) & set("‘’“”\r\n\t")]


@pytest.mark.parametrize(("split", "official", "listed"), [("dev", "dev", "dev"), ("test", "tst", "test")])
def test_both_emorynlp_forms_say_the_same(split: str, official: str, listed: str, data_root: Path) -> None:
    directory = data_root / "emorynlp"
    one = read_emorynlp_split(directory / f"emotion-detection-{official}.json", split, raise_first)
    other = read_emorynlp_split(directory / f"{listed}_data.json", split, raise_first)
    assert [[(t.text, t.labels) for t in c.turns] for c in one] == [
        [(t.text, t.labels) for t in c.turns] for c in other
    ]
    assert all(
        a.speaker.replace(", ", " ") == b.speaker
        for x, y in zip(one, other)
        for a, b in zip(x.turns, y.turns)
    )
    assert one[0].dialogue_id.startswith("s01_e")


def test_auto_takes_meld_where_the_data_root_holds_it(data_root: Path) -> None:
    assert load_corpus("auto", data_root=data_root).name == "meld"
