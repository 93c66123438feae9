"""Test that words are found in every script; English ones are what blanks and punctuation separate."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.corpora.words import fold, pieces, words, words_and_marks


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("今天天气很好，我们去公园吧。", 12),
        ("今日は天気がいい、カメラ", 9),  # a run of katakana is one word
        ("สวัสดีครับ", 7),
        ("안녕하세요 오늘은", 2),
        ("नमस्ते दुनिया", 2),  # vowel signs are marks, and part of the word
        ("می\u200cخواهم بروم", 2),
        ("我爱Python吧", 4),
        ("cafe\u0301 au lait", 3),
        ("👍🏽 👩\u200d👧", 0),
    ],
)
def test_words_of_other_scripts(text: str, count: int) -> None:
    assert len(words(text)) == count


def test_a_word_cannot_hide_from_comparison() -> None:
    """Catch spellings that look like the word, and points that UAX 29 lets words run across."""
    assert words("ｊｏｙ j\u200boy jo\u00ady ok.joy _joy_ JOY’S") == [
        *["joy"] * 3,
        *["ok", "joy", "joy", "joy's"],
    ]
    assert fold("Cafe\u0301 STRASSE") == fold("CAFÉ straße")


@given(st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_ascii_words_are_those_of_the_plain_pattern(text: str) -> None:
    assert words(text) == re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
    assert [piece.strip() for piece in pieces(text) if piece.strip()] == text.split()


@given(st.text() | st.text(alphabet="我 吧。วัa,’\u0301か"))
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)).rstrip() == text.rstrip()


def test_pieces_divide_lines_without_blanks() -> None:
    assert pieces("我们走，好吗? a foo-bar") == ["我", "们", "走，", "好", "吗?", " a", " foo-bar"]


def test_marks_are_units_beside_the_words() -> None:
    assert words_and_marks("Oh my GOD!!  I don’t know... 3 é?") == [
        *["oh", "my", "god", "!", "!", "i", "don't", "know", ".", ".", ".", "3", "é", "?"]
    ]


@given(st.text())
def test_units_are_the_folded_text_without_its_blanks(text: str) -> None:
    assert "".join("".join(words_and_marks(text)).split()) == "".join(fold(text).replace("’", "'").split())
