"""Writes the prompts of the two roles, as token ids.

The words are few and fixed: a model of 4 M parameters learns them from scratch, and one of 8 B must
understand the same. The recognizer's prompt:

    Which of anger, joy, neutral does the last line show? Name one to three, the main one first.

    Monica: We got the flat!
    > Joey: No way!

The responder's prompt:

    Write the next line, by Joey, showing joy. Do not name it.

    Monica: We got the flat!

The instruction comes first, so that prompts of one role share a prefix the engine can cache. The target line
comes last, next to the answer. Utterances and names are data: every run of blanks, line breaks and control
characters in them becomes one blank, so that no utterance can open a line of its own, and the encoder turns
chat-template markers into plain text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Protocol

import regex

from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Turn
from selfemo.corpora.words import fold
from selfemo.emotions.answer import SEPARATOR, format_answer
from selfemo.rollout.api import MAX_SCORED_IDS, Completion
from selfemo.selfplay.views import INSTRUCTION, PLAIN, Shown, View
from selfemo.tokens.encoder import Message

TARGET_MARK = "> "
DEFAULT_SPEAKER = "Someone"
MAX_SPEAKER_CHARS = 40
CACHED_LINES = 16_384
"""Number of texts whose clean form is remembered: a turn is shown in many prompts."""


class Encoder(Protocol):
    """The methods of selfemo.tokens.encoder.ChatEncoder that prompts need."""

    def encode_prompt(self, messages: Sequence[Message], thinking: bool = False) -> tuple[int, ...]:
        """Encode messages up to and including the opening of the assistant's turn.

        Markers inside a message are plain text.
        """
        ...

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Encode the assistant's text, and add its end-of-turn token."""
        ...

    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        """Decode ids; control tokens are left out unless `show_special`."""
        ...

    def truncate(self, text: str, max_tokens: int) -> str:
        """Cut `text` at a token border to at most `max_tokens` tokens."""
        ...


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of both roles, and the completions that supervised examples teach."""

    encoder: Encoder
    labels: tuple[str, ...]
    """The closed label set."""
    history_turns: int
    """Earlier turns shown before the target turn (recognizer) or the turn to answer (responder)."""
    max_turn_tokens: int
    """In a prompt, a longer turn is cut at a token border."""
    thinking: bool = False
    """Whether the recognizer may think before it answers; the responder never does."""
    opens_thinking: bool = False
    """Whether a prompt with thinking ends inside the block, so that the thoughts come first."""

    def recognize(self, turns: Sequence[Turn], view: View = PLAIN, seed: int = 0) -> tuple[int, ...]:
        """Ask for the emotions of `turns[-1]`, as prompt ids.

        At most `history_turns` turns before it are shown, and none after it.

        Args:
            view: how the turns, the label list and the instruction are shown.
            seed: of the view's draws.
        """
        shown = Shown(tuple(self._window(turns)), self.labels)
        if view is not PLAIN:  # most are, and making a random source takes longer than the rest
            shown = view.show(shown, random.Random(seed))
        return self._encode(recognizer_text(shown.turns, shown.labels, shown.instruction), self.thinking)

    def respond(self, turns: Sequence[Turn], speaker: str, emotions: Sequence[str]) -> tuple[int, ...]:
        """Ask for `speaker`'s answer to `turns[-1]`, showing `emotions`, as prompt ids."""
        return self._encode(responder_text(self._window(turns), speaker, emotions), thinking=False)

    def without_thinking(self) -> PromptBuilder:
        """Return a builder whose prompts close the thinking block.

        For supervised examples: their answers are given, and nobody wrote down the thoughts before them.
        """
        return replace(self, thinking=False)

    def answer_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Encode an answer as completion ids."""
        return self.encoder.encode_completion(format_answer(labels))

    @cached_property
    def first_ids(self) -> tuple[int, ...]:
        """The first token of each label's answer, in the order of `labels`.

        Raises:
            UserError: two labels begin with the same token, or there are more than an engine scores.
        """
        ids = tuple(self.answer_ids((label,))[0] for label in self.labels)
        problem = ""
        if len(ids) > MAX_SCORED_IDS:
            problem = f"{len(ids)} labels, and an engine scores {MAX_SCORED_IDS} tokens of a prompt"
        for place, (label, first) in enumerate(zip(self.labels, ids, strict=True)):
            if first in ids[:place]:
                other = self.labels[ids.index(first)]
                problem = f"the tokenizer begins the labels {other} and {label} with the same token"
        if problem:
            raise UserError(
                f"selfplay.teacher_votes=probabilities: {problem}: set selfplay.teacher_votes=answers"
            )
        return ids

    def utterance_ids(self, text: str) -> tuple[int, ...]:
        """Encode an utterance as completion ids."""
        return self.encoder.encode_completion(clean_line(text))

    def _window(self, turns: Sequence[Turn]) -> list[Turn]:
        if not turns:
            raise ValueError("turns is empty: a prompt needs a turn to read or to answer")
        shown = self._shown
        return [shown(turn.speaker, turn.text) for turn in turns[-(self.history_turns + 1) :]]

    @cached_property
    def _shown(self) -> Callable[[str, str], Turn]:
        """Make the turn of a prompt: a clean text that is not too long, without labels."""

        def shown(speaker: str, text: str) -> Turn:
            return Turn(speaker, self.encoder.truncate(clean_line(text), self.max_turn_tokens))

        return lru_cache(CACHED_LINES)(shown)

    def _encode(self, text: str, thinking: bool) -> tuple[int, ...]:
        return tuple(self.encoder.encode_prompt([Message("user", text)], thinking))


def completion_text(encoder: Encoder, completion: Completion) -> str:
    """Decode a completion, without the end-of-turn token that closed it.

    Any other control token that was sampled is spelled out: if it were left out, it could hide inside an
    answer that looks correct.
    """
    ids = completion.token_ids[:-1] if completion.finished else completion.token_ids
    return encoder.decode(ids, show_special=True)


def recognizer_text(turns: Sequence[Turn], labels: Sequence[str], instruction: str = INSTRUCTION) -> str:
    """Write the recognizer's message: instruction, history, and the last line, marked.

    The emotions of the last line are asked for.
    """
    lines = [_line(turn.speaker, turn.text) for turn in turns]
    return "\n".join([_asked(instruction, tuple(labels)), "", *lines[:-1], TARGET_MARK + lines[-1]])


def responder_text(turns: Sequence[Turn], speaker: str, emotions: Sequence[str]) -> str:
    """Write the responder's message: who speaks next, the emotions to show, and the history."""
    instruction = (
        f"Write the next line, by {clean_speaker(speaker)}, showing {SEPARATOR.join(emotions)}. "
        "Do not name it."
    )
    return "\n".join([instruction, "", *(_line(turn.speaker, turn.text) for turn in turns)])


@lru_cache(maxsize=CACHED_LINES)
def clean_line(text: str) -> str:
    """Put `text` on one line.

    A run of blanks, line breaks and control characters becomes one blank. Format characters that belong to
    words and emoji stay; others are removed.
    """
    if not text.isprintable():  # most texts are, and then hold none of these characters
        text = _STRAY_FORMATS.sub("", _CONTROLS.sub(" ", text))
    return " ".join(text.split())


@lru_cache(maxsize=CACHED_LINES)
def clean_speaker(name: str) -> str:
    """Clean a name so that it cannot pass for a line of dialogue: one line, no colon, at most 40 characters.

    "Someone" if nothing is left that can be seen.
    """
    cleaned = clean_line(_COLONS.sub(" ", name))[:MAX_SPEAKER_CHARS].strip()
    return cleaned if fold(cleaned).strip() else DEFAULT_SPEAKER


_COLONS = regex.compile("[:：﹕︓]")
_CONTROLS = regex.compile(r"[\p{Cc}\p{Zl}\p{Zp}]")
_STRAY_FORMATS = regex.compile(
    r"(?![\u00ad\u180e\u200b-\u200d\u2060\p{Prepended_Concatenation_Mark}])"
    r"(?<!\U0001F3F4[\U000E0020-\U000E007E]*(?=[\U000E0020-\U000E007F]))\p{Cf}"
)
"""Format characters that no word needs, such as those that turn the reading direction round. Words have
joiners (Persian, emoji), soft hyphens and break marks (Khmer); a flag has tags after U+1F3F4."""


@lru_cache(maxsize=256)
def _asked(instruction: str, labels: tuple[str, ...]) -> str:
    return instruction.format(labels=SEPARATOR.join(labels))


@lru_cache(maxsize=CACHED_LINES)
def _line(speaker: str, text: str) -> str:
    return f"{clean_speaker(speaker)}: {clean_line(text)}"
