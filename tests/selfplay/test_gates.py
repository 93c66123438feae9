"""Test that each gate stops its kind of cheap reward, and that ordinary lines pass."""

from __future__ import annotations

import pytest

from selfemo.corpora.words import words
from selfemo.selfplay.gates import failed_gates, is_copy, leaks_label
from tests.helpers.label_sets import EMORYNLP_LABELS, EVERY_CORPUS, IEMOCAP6_LABELS, MELD_LABELS
from tests.helpers.scripted import turns

HISTORY = turns("Joey: Oh my God, you got the apartment back!", "Monica: What?")


def gates(text: str, finished: bool = True) -> tuple[str, ...]:
    return failed_gates(text, HISTORY, MELD_LABELS, 2, 10, finished)


@pytest.mark.parametrize(
    "text",
    ["Oh my God!", "That is so great, I love it.", "Why: because I said so.", "You got me there, Joey."],
)
def test_ordinary_lines_pass(text: str) -> None:
    assert gates(text) == ()


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("No!", ("length",)),
        ("", ("length",)),
        ("so " * 11, ("length",)),
        ("I am so angry now", ("leak",)),
        ("pure JOY, truly", ("leak",)),
        ("well, joy, surprise", ("leak",)),
        ("Oh my God you got the apartment back", ("copy",)),
        ("Well you got the apartment back!", ("copy",)),
        ("What?", ("length", "copy")),
        ("I win.\nMonica: you lose", ("turns",)),
        ("I win. monica : you lose", ("turns",)),
        ("I win <|im_end|> more", ("turns",)),
        ("I am furious, joey: anger.", ("leak", "turns")),
    ],
)
def test_each_trick_fails_by_name(text: str, failed: tuple[str, ...]) -> None:
    assert gates(text) == failed


def test_a_reply_the_token_cap_cut_fails() -> None:
    assert gates("a fine reply", finished=False) == ("cut",)


@pytest.mark.parametrize(
    ("word", "labels"),
    [
        ("angrily", MELD_LABELS),
        ("disgusting", MELD_LABELS),
        ("surprisingly", MELD_LABELS),
        ("fearful", MELD_LABELS),
        ("saddest", MELD_LABELS),
        ("joyous", EMORYNLP_LABELS),
        ("peace", EMORYNLP_LABELS),
        ("scary", EMORYNLP_LABELS),
        ("anger", IEMOCAP6_LABELS),
        ("excitement", IEMOCAP6_LABELS),
        ("frustration", IEMOCAP6_LABELS),
        ("happiness", IEMOCAP6_LABELS),
        ("happily", IEMOCAP6_LABELS),
        ("frustrating", IEMOCAP6_LABELS),
        ("loving", ("love", "neutral")),
        ("nervousness", ("nervous", "neutral")),
    ],
)
def test_inflections_name_their_label(word: str, labels: tuple[str, ...]) -> None:
    assert leaks_label([word], labels)


@pytest.mark.parametrize("labels", EVERY_CORPUS)
def test_every_label_names_itself(labels: tuple[str, ...]) -> None:
    assert all(leaks_label([label], labels) for label in labels)


@pytest.mark.parametrize("word", ["enjoy", "great", "fearless", "mad", "sand"])
def test_other_words_are_free(word: str) -> None:
    assert not leaks_label([word], ("anger", "fear", "joy", "love", "sadness"))


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("好啊，我们走吧", ()),
        ("好", ("length",)),
        ("我昨天看到他了", ("copy",)),
        ("我 joy 啊", ("leak",)),
        ("我很ｊｏｙ啊", ("leak",)),
        ("走吧小明：你好", ("turns",)),
        ("走吧 ＜｜User｜＞", ("turns",)),
    ],
)
def test_gates_act_in_languages_without_blanks(text: str, failed: tuple[str, ...]) -> None:
    history = turns("小明: 我昨天看到他了！")
    assert failed_gates(text, history, MELD_LABELS, 2, 10) == failed


def test_a_shared_phrase_is_not_a_copy() -> None:
    earlier = words("you got the apartment back and then you left for good")
    assert not is_copy(words("who told them that you got the apartment"), earlier)
    assert is_copy(words("you got the apartment back"), earlier)
    assert words("It’s Joey's, isn't it?") == ["it's", "joey's", "isn't", "it"]
