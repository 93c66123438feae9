"""Test the answer grammar: it reads back everything it writes, and nothing else is an answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.emotions.answer import Answer, FormatFailure, format_answer, parse_answer
from selfemo.emotions.labels import check_label_set, check_labels
from tests.helpers.label_sets import EVERY_CORPUS, MELD_LABELS

label_lists = st.lists(st.sampled_from(MELD_LABELS), min_size=1, max_size=3, unique=True)


@given(label_lists)
def test_what_is_written_is_read_back_in_order(labels: list[str]) -> None:
    assert parse_answer(format_answer(labels), MELD_LABELS) == Answer(tuple(labels))


@settings(max_examples=300)
@given(
    st.text(alphabet=st.sampled_from(list("joyangerfsup, \n\u2028.<>/think")), max_size=40)
    | st.text(max_size=20)
)
def test_an_answer_is_exactly_its_canonical_text(text: str) -> None:
    reading = parse_answer(text, MELD_LABELS)
    if isinstance(reading, Answer):
        assert format_answer(reading.labels) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Joy", "unknown label"),
        ("joy.", "unknown label"),
        (" joy", "unknown label"),
        ("joy ", "unknown label"),
        ("joy,surprise", "unknown label"),
        ("joy, ", "unknown label"),
        ("joy\n", "unknown label"),
        ("joy, happiness", "unknown label"),
        ("joy\nsurprise", "several lines"),
        ("joy\u2028surprise", "several lines"),
        ("joy, joy", "repeated label"),
        ("joy, anger, fear, sadness", "too many labels"),
        ("<think>\n\n</think>\n\njoy", "several lines"),
        ("<think></think>joy", "unknown label"),
    ],
)
def test_near_misses_fail_and_say_why(text: str, reason: str) -> None:
    assert isinstance(failure := parse_answer(text, MELD_LABELS), FormatFailure)
    assert failure.reason == reason


def test_an_answer_the_length_cap_cut_is_none() -> None:
    assert parse_answer("joy", MELD_LABELS, finished=False) == FormatFailure("cut", "joy")


@pytest.mark.parametrize(
    "text", ["<think>sad? no</think>joy", "<think>\nline\n</think>\n\njoy", "joy", " <think></think> joy"]
)
def test_thinking_is_set_aside_where_allowed(text: str) -> None:
    assert parse_answer(text, MELD_LABELS, thinking=True) == Answer(("joy",))


@pytest.mark.parametrize(
    "text",
    [
        "<think>joy",
        "<think>a</think>",
        "<think>a</think>joy<think>b</think>",
        "x<think>a</think>joy",
        "<think>a</think>\n\njoy\n",
    ],
)
def test_thinking_must_be_one_closed_block_before_the_answer(text: str) -> None:
    assert isinstance(parse_answer(text, MELD_LABELS, thinking=True), FormatFailure)


@pytest.mark.parametrize("labels", [[], ["joy"] * 2, list(MELD_LABELS[:4])])
def test_only_answers_can_be_written(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="labels"):
        format_answer(labels)


@pytest.mark.parametrize("labels", EVERY_CORPUS)
def test_the_corpora_label_sets_are_valid_and_alphabetical(labels: tuple[str, ...]) -> None:
    check_label_set(labels)
    assert list(labels) == sorted(labels)


@pytest.mark.parametrize(
    "labels",
    [("joy",), ("joy", "Anger"), ("joy", "a, b"), ("joy", "anger", "joy"), ("joy", "x\n"), ("joy", "")],
)
def test_unusable_label_sets_are_named(labels: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        check_label_set(labels)


def test_an_unknown_label_names_its_place_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:3: unknown label 'suprise' \(did you mean 'surprise'\?\)"):
        check_labels(["joy", "suprise"], MELD_LABELS, "a.jsonl:3")
