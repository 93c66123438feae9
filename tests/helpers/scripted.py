"""Provide a character-level encoder and a generator that answers from a script, to test logic
without a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from selfemo.corpora.conversation import Conversation, Turn
from selfemo.rollout.api import Completion, GenerationRequest, Session
from selfemo.rollout.sessions import CallByCall
from selfemo.tokens.encoder import Message

END = 0
CONTROL = 0x110001
THINK = 0x110002
LABELS = ("anger", "joy", "neutral", "sadness")


class CharEncoder:
    """Encodes one id per character (its code point + 1); 0 ends a turn.

    CONTROL is a control token, THINK ends a prompt that invites thinking.
    """

    def encode_prompt(self, messages: Sequence[Message], thinking: bool = False) -> tuple[int, ...]:
        ids = tuple(ord(char) + 1 for message in messages for char in message.content)
        return (*ids, THINK) if thinking else ids

    def encode_completion(self, text: str) -> tuple[int, ...]:
        return (*(ord(char) + 1 for char in text), END)

    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        special = {END: "<|end|>", CONTROL: "<|start|>", THINK: ""}
        return "".join((special[i] if show_special else "") if i in special else chr(i - 1) for i in ids)

    def truncate(self, text: str, max_tokens: int) -> str:
        return text[:max_tokens]


Script = Callable[[str, GenerationRequest], str]


class ScriptedGenerator:
    """Completes by calling `script(prompt text, request)`; keeps every call.

    A result longer than the cap is cut.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[list[GenerationRequest]] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.calls.append(list(requests))
        return [self._complete(request) for request in requests]

    @contextmanager
    def session(self) -> Iterator[Session]:
        yield CallByCall(self)

    def _complete(self, request: GenerationRequest) -> Completion:
        text = self.script(CharEncoder().decode(request.prompt_ids), request)
        ids = CharEncoder().encode_completion(text)
        kept = ids[: request.max_tokens]
        return Completion(kept, tuple(-0.5 for _ in kept), len(kept) == len(ids))


class AnyOrder:
    """A session whose requests end in a random order, some at a time, each in a generator call of its own."""

    def __init__(self, generator: ScriptedGenerator, seed: int) -> None:
        self._generator, self._random = generator, random.Random(seed)
        self._in_progress: dict[int, GenerationRequest] = {}
        self._added = 0

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        self._in_progress |= dict(enumerate(requests, self._added))
        self._added += len(requests)

    def advance(self) -> list[tuple[int, Completion]]:
        size = min(len(self._in_progress), self._random.randint(1, 4))
        ended = sorted(self._random.sample(sorted(self._in_progress), size))
        return [(number, self._generator.generate([self._in_progress.pop(number)])[0]) for number in ended]


def turns(*lines: str) -> tuple[Turn, ...]:
    """Make turns from "Speaker[label, label]: text" or "Speaker: text"."""
    made = []
    for line in lines:
        head, text = line.split(": ", 1)
        name, _, labels = head.partition("[")
        made.append(Turn(name, text, tuple(labels.rstrip("]").split(", ")) if labels else ()))
    return tuple(made)


def conversation(dialogue_id: str, *lines: str, split: str = "train") -> Conversation:
    return Conversation("toy", split, dialogue_id, turns(*lines))
