"""Test IEMOCAP from files in the official layout: codes, votes, context turns, splits, and each
kind of damage.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.corpora.problems import Problem
from selfemo.corpora.registry import load_corpus


def test_six_way_labels_votes_and_context(iemocap_root: Path) -> None:
    corpus = load_corpus("iemocap6", iemocap_root)
    assert corpus.labels == ("angry", "excited", "frustrated", "happy", "neutral", "sad")
    turns = corpus.conversations[0].turns
    assert [turn.speaker for turn in turns] == ["F", "M", "F", "M", "M", "F"]
    assert [turn.labels for turn in turns] == [
        ("neutral",),
        ("frustrated", "angry"),
        (),
        (),
        (),
        ("excited", "happy"),
    ]
    assert turns[0].votes == (("neutral", 3),)  # the actor's own "Anger" is not a vote
    # Surprise is outside the label set; the agreed code stays primary.
    assert turns[1].votes == (
        ("angry", 2),
        ("frustrated", 2),
    )
    assert turns[2].votes == ()  # raters did not agree: the turn is context only
    assert turns[5].text == "Who told you to get in this line?"


def test_four_way_merges_excited_into_happy_and_drops_frustration(iemocap_root: Path) -> None:
    corpus = load_corpus("iemocap4", iemocap_root)
    assert corpus.labels == ("angry", "happy", "neutral", "sad")
    turns = corpus.conversations[0].turns
    assert [turn.labels for turn in turns] == [("neutral",), (), (), (), (), ("happy",)]
    assert turns[5].votes == (("happy", 3),)


def test_splits_are_session_5_and_the_last_twenty_training_dialogues(iemocap_root: Path) -> None:
    corpus = load_corpus("iemocap6", iemocap_root)
    train, dev, test = (corpus.split(name) for name in ("train", "dev", "test"))
    assert [c.dialogue_id for c in test] == [f"Ses05F_impro0{n}" for n in range(1, 8)]
    assert [c.dialogue_id for c in train] == [*(f"Ses01F_impro0{n}" for n in range(1, 8)), "Ses02F_impro01"]
    assert len(dev) == 20
    assert dev[-1].dialogue_id == "Ses04F_impro07"


def test_path_is_recognised_as_six_way(iemocap_root: Path) -> None:
    assert load_corpus("auto", iemocap_root).name == "iemocap6"


@pytest.mark.parametrize(
    ("kind", "old", "new", "line", "message"),
    [
        ("EmoEvaluation", "\tfru\t", "\tfur\t", 11, "code 'fur' is unknown"),
        ("EmoEvaluation", "Frustration; Anger;", "Frustration; Angr;", 12, "category 'Angr' is unknown"),
        ("EmoEvaluation", "A-E3:\tval 2", "B-E3:\tval 2", 16, "expected a turn's head"),
        ("EmoEvaluation", "_F001\txxx", "_F000\txxx", 18, "is evaluated twice, first in line 3"),
        ("EmoEvaluation", "_F001\txxx", "_F009\txxx", 0, "has no turn Ses01F_impro01_F009, which line 18"),
        ("transcriptions", "Yeah.", "", 3, "text is empty"),
        ("transcriptions", "M: [LAUGHTER]", "[LAUGHTER]", 4, "expected `Ses01F_impro01_F000"),
        ("transcriptions", "_M000 [007", "_F000 [007", 2, "appears twice, first in line 1"),
    ],
)
def test_damage_is_reported_with_its_line(
    iemocap_root: Path, kind: str, old: str, new: str, line: int, message: str
) -> None:
    damaged = iemocap_root / "Session1" / "dialog" / kind / "Ses01F_impro01.txt"
    content = damaged.read_text()
    assert content.count(old) >= 1
    damaged.write_text(content.replace(old, new, 1))
    problems: list[Problem] = []
    load_corpus("iemocap6", iemocap_root, report=problems.append)
    assert problems
    assert message in problems[0].message
    assert problems[0].line == line
    with pytest.raises(UserError, match=r"Ses01F_impro01\.txt"):
        load_corpus("iemocap6", iemocap_root)


def test_a_missing_session_is_named(iemocap_root: Path) -> None:
    for path in (iemocap_root / "Session3" / "dialog" / "transcriptions").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="Session3"):
        load_corpus("iemocap6", iemocap_root)
