"""Test that prompts show the context, and that text in them stays data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Turn
from selfemo.rollout.api import Completion, GenerationRequest, check_room
from selfemo.run.stop_rounds import GuardedEngine
from selfemo.selfplay.prompts import (
    DEFAULT_SPEAKER,
    MAX_SPEAKER_CHARS,
    PromptBuilder,
    clean_line,
    clean_speaker,
    completion_text,
    recognizer_text,
    responder_text,
)
from selfemo.selfplay.room import longest_requests
from tests.helpers.scripted import CONTROL, END, LABELS, CharEncoder, conversation, turns

DIALOGUE = turns("Ann: one", "Bo: two", "Ann: three", "Bo: four")


def builder(history_turns: int = 2, max_turn_tokens: int = 100) -> PromptBuilder:
    return PromptBuilder(CharEncoder(), LABELS, history_turns, max_turn_tokens)


def test_the_recognizer_sees_its_history_and_the_marked_last_line() -> None:
    text = CharEncoder().decode(builder().recognize(DIALOGUE))
    assert text.splitlines()[2:] == ["Bo: two", "Ann: three", "> Bo: four"]
    assert "anger, joy, neutral, sadness" in text.splitlines()[0]


def test_the_responder_sees_its_target_its_name_and_no_mark() -> None:
    text = CharEncoder().decode(builder(history_turns=0).respond(DIALOGUE, "Cy", ["joy", "anger"]))
    assert text == "Write the next line, by Cy, showing joy, anger. Do not name it.\n\nBo: four"


def test_gold_labels_never_reach_a_prompt() -> None:
    annotated = turns("Ann[joy]: one", "Bo[anger]: two")
    assert builder().recognize(annotated) == builder().recognize(turns("Ann: one", "Bo: two"))


def test_long_turns_are_cut_and_completions_end_their_turn() -> None:
    assert CharEncoder().decode(builder(max_turn_tokens=3).recognize(DIALOGUE)).endswith("> Bo: fou")
    assert builder().answer_ids(["joy"])[-1] == END
    assert CharEncoder().decode(builder().utterance_ids("a\nb")) == "a b"
    with pytest.raises(ValueError, match="turns is empty"):
        builder().recognize([])


@given(st.text(max_size=30), st.text(max_size=60))
def test_no_text_or_name_can_open_a_line(name: str, text: str) -> None:
    dialogue = [Turn(name, text), Turn(text, name)]
    assert len(recognizer_text(dialogue, LABELS).splitlines()) == 4
    assert len(responder_text(dialogue, name, ["joy"]).splitlines()) == 4


@given(st.text(max_size=80))
def test_a_cleaned_name_is_short_nonempty_and_without_colon(name: str) -> None:
    cleaned = clean_speaker(name)
    assert 0 < len(cleaned) <= MAX_SPEAKER_CHARS
    assert ":" not in cleaned
    assert clean_line(clean_line(name)) == clean_line(name)


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",
        "👩\u200d👩\u200d👧",
        "co\u00adoperate",
        "ភាសា\u200bខ្មែរ",
        "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    ],
)
def test_a_line_keeps_the_invisible_characters_of_its_words(text: str) -> None:
    assert clean_line(f" {text}\n") == text


def test_a_line_loses_the_invisible_characters_that_no_word_needs() -> None:
    assert clean_line("a\u202eb \u200f! \ufeffc\U000e0067d \x1be\u2028f") == "ab ! cd e f"
    assert clean_speaker("\u200d\u00ad") == DEFAULT_SPEAKER
    assert clean_speaker("小明：王") == "小明 王"


def test_a_sampled_control_token_cannot_hide_in_an_answer() -> None:
    ids = CharEncoder().encode_completion("joy")
    logprobs = (0.0,) * len(ids)
    assert completion_text(CharEncoder(), Completion(ids, logprobs, True)) == "joy"
    hidden = (*ids[:-1], CONTROL, END)
    assert completion_text(CharEncoder(), Completion(hidden, (0.0,) * 5, True)) == "joy<|start|>"
    assert completion_text(CharEncoder(), Completion(ids[:-1], (0.0,) * 3, False)) == "joy"


def test_the_longest_prompts_of_a_corpus_are_refused_where_they_do_not_fit() -> None:
    """Ask for the longest window of both roles; one token less is too few."""
    train = [
        conversation("1", "A[joy]: hm", "B[joy]: a long line, far longer than any", "A[joy]: no"),
        conversation("2", "A[joy]: yes"),
    ]
    config = SelfPlayConfig(max_answer_tokens=7, max_utterance_tokens=9)
    requests = longest_requests(builder(history_turns=1), train, config)
    needed = max(len(r.prompt_ids) + r.max_tokens for r in requests)
    assert needed == len(builder(history_turns=1).recognize(train[0].turns)) + 7
    assert {r.max_tokens for r in requests} == {7, 9}
    check_room(requests, needed)
    with pytest.raises(
        UserError, match=rf"may take {needed} tokens, model.max_length={needed - 1} holds fewer: lower corpus"
    ):
        check_room(requests, needed - 1)


def test_what_does_not_fit_is_refused_before_the_engine_is_asked() -> None:
    """vLLM's own message names no setting of ours."""

    class Engine:
        max_length = 10

        def generate(self, requests: object) -> list[Completion]:
            raise AssertionError("the engine was asked")

    with pytest.raises(UserError, match=r"may take 11 tokens, model\.max_length=10"):
        GuardedEngine(Engine()).generate([GenerationRequest((1, 2, 3), 0, 8, 1.0)])  # type: ignore[arg-type]
