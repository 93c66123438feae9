"""Asks the two roles for completions, reads the answers and gates the replies.

Self-play, chat and evaluation share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import THINK_OPEN, Reading, parse_answer
from selfemo.rollout.api import Completion, GenerationRequest, Generator
from selfemo.selfplay.gates import failed_gates
from selfemo.selfplay.prompts import PromptBuilder, completion_text
from selfemo.selfplay.records import Gate

GREEDY = 0.0
CACHED_ANSWERS = 16_384
"""Number of answers whose reading is remembered: a label set recurs."""
_parse = lru_cache(CACHED_ANSWERS)(parse_answer)


@dataclass(frozen=True)
class Recognizer:
    """Names the emotions of a dialogue's last turn."""

    prompts: PromptBuilder
    config: SelfPlayConfig

    def request(self, prompt_ids: tuple[int, ...], seed: int) -> GenerationRequest:
        """Request a sampled answer to a prompt of `prompts.recognize`."""
        return GenerationRequest(prompt_ids, seed, self.config.max_recognizer_tokens, self.config.temperature)

    def greedy_request(
        self, prompt_ids: tuple[int, ...], scored_ids: tuple[int, ...] = ()
    ) -> GenerationRequest:
        """Request the greedy answer to a prompt of `prompts.recognize`.

        Args:
            scored_ids: tokens whose probability as the answer's first is asked for besides.
        """
        return GenerationRequest(prompt_ids, 0, self.config.max_recognizer_tokens, GREEDY, scored_ids)

    def read(self, completion: Completion) -> tuple[str, Reading]:
        """Decode an answer and parse it."""
        text = completion_text(self.prompts.encoder, completion)
        opened = THINK_OPEN if self.prompts.thinking and self.prompts.opens_thinking else ""
        reading = _parse(
            opened + text, self.prompts.labels, thinking=self.config.thinking, finished=completion.finished
        )
        return text, reading

    def read_all(self, generator: Generator, requests: Sequence[GenerationRequest]) -> list[Reading]:
        """Read many prompts' answers in one generator call; no call if there is no request."""
        return [self.read(completion)[1] for completion in (generator.generate(requests) if requests else [])]

    def read_last_turns(self, generator: Generator, dialogues: Sequence[Sequence[Turn]]) -> list[Reading]:
        """Read each dialogue's last turn greedily, in one generator call."""
        prompts = [self.prompts.recognize(turns) for turns in dialogues]
        return self.read_all(generator, [self.greedy_request(prompt) for prompt in prompts])


@dataclass(frozen=True)
class Responder:
    """Writes a dialogue's next turn, in the emotions that it is asked for."""

    prompts: PromptBuilder
    config: SelfPlayConfig

    def request(self, prompt_ids: tuple[int, ...], seed: int) -> GenerationRequest:
        """Request a sampled reply to a prompt of `prompts.respond`."""
        return GenerationRequest(prompt_ids, seed, self.config.max_utterance_tokens, self.config.temperature)

    def gate(
        self, turns: Sequence[Turn], speaker: str, completion: Completion
    ) -> tuple[str, tuple[Gate, ...]]:
        """Decode a reply, not yet cleaned, and list the gates it fails.

        Args:
            turns: the dialogue that `speaker` replies to.
        """
        text = completion_text(self.prompts.encoder, completion)
        shown = [*turns[-(self.prompts.history_turns + 1) :], Turn(speaker, "")]
        bounds = (self.config.min_utterance_words, self.config.max_utterance_words)
        return text, failed_gates(text, shown, self.prompts.labels, *bounds, completion.finished)
