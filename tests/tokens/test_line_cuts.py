"""Test that a text's lines, encoded one by one, give the ids of the whole text."""

from __future__ import annotations

import json
from functools import cache
from itertools import chain
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from selfemo.tokens.line_cuts import LineCuts
from selfemo.tokens.training import WORD_PATTERN, train_tokenizer
from tests.tokens.conftest import TEXTS

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LLAMA3 = WORD_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")


def _split(pattern: str) -> dict[str, Any]:
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    sequence = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_of])
    made = Tokenizer.from_str(train_tokenizer(TEXTS, 400).to_str())
    made.pre_tokenizer = sequence
    found: dict[str, Any] = json.loads(made.to_str())["pre_tokenizer"]
    return found


def _tokenizer(**changes: Any) -> Tokenizer:
    """Make a tokenizer with merges inside lines and over line ends, so that a wrong cut shows in its ids."""
    tokenizer = train_tokenizer([*TEXTS, *("a\n\nb!\nc \nd",) * 50], 420)
    state = json.loads(tokenizer.to_str()) | {"added_tokens": []} | changes
    return Tokenizer.from_str(json.dumps(state))


SAFE = {
    "qwen": _tokenizer(normalizer={"type": "NFC"}),
    "own": _tokenizer(),
    "llama3": _tokenizer(pre_tokenizer=_split(LLAMA3)),
    "gpt2": _tokenizer(pre_tokenizer=GPT2),
}
UNSAFE = {
    "prefix space": _tokenizer(pre_tokenizer=GPT2 | {"add_prefix_space": True}),
    "pieces over line ends": _tokenizer(pre_tokenizer=_split(r"\s*\S+")),
    "whole texts": _tokenizer(pre_tokenizer=None),
    "another normaliser": _tokenizer(normalizer={"type": "Prepend", "prepend": "_"}),
}


@cache
def _cuts(name: str) -> LineCuts:
    return LineCuts((SAFE | UNSAFE)[name])


@pytest.mark.parametrize("name", [*SAFE, *UNSAFE])
@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(st.text(max_size=6) | st.sampled_from(("\n", "\n\n", " ", "A: ", "'")), max_size=9).map(
        "".join
    )
)
@example(text="A: \n\u0301b")
@example(text="a!\n\nb\r\nc")
def test_lines_have_the_ids_of_the_whole_text(name: str, text: str) -> None:
    tokenizer, cuts = (SAFE | UNSAFE)[name], _cuts(name)
    lines = cuts.lines(text)
    assert "".join(lines) == text
    ids = [tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
    assert list(chain(*ids)) == tokenizer.encode(text, add_special_tokens=False).ids
    two = cuts.before_last_line(text)
    assert "".join(two) == text
    ids = [tokenizer.encode(part, add_special_tokens=False).ids for part in two]
    assert list(chain(*ids)) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", SAFE)
def test_prompts_are_cut_at_their_lines_and_after_speakers(name: str) -> None:
    found = LineCuts(SAFE[name]).lines("Which of a, b?\n\nAnn: it's\nBo: yes!\n> Ann: no")
    after_blank_line = ["Which of a, b?\n\n", "Ann:"]
    first = ["".join(after_blank_line)] if name == "gpt2" else after_blank_line
    assert found == [*first, " it's\n", "Bo:", " yes!\n", "> Ann:", " no"]


@pytest.mark.parametrize("name", UNSAFE)
def test_tokenizers_that_look_across_line_ends_get_whole_texts(name: str) -> None:
    assert LineCuts(UNSAFE[name]).lines("a\nb\n\nc") == ["a\nb\n\nc"]
