"""Asks the two roles for completions, and reads and gates these: for self-play, chat and evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import Reading, parse_answer
from selfemo.rollout.api import Completion, GenerationRequest, Generator
from selfemo.selfplay.gates import failed_gates
from selfemo.selfplay.prompts import PromptBuilder, completion_text
from selfemo.selfplay.records import Gate

GREEDY = 0.0


@dataclass(frozen=True)
class Recognizer:
    """Names the emotions of a dialogue's last turn."""

    prompts: PromptBuilder
    config: SelfPlayConfig

    def request(self, prompt_ids: tuple[int, ...], seed: int) -> GenerationRequest:
        """A sampled answer to a prompt of `prompts.recognize`."""
        return GenerationRequest(prompt_ids, seed, self.config.max_recognizer_tokens, self.config.temperature)

    def greedy_request(self, prompt_ids: tuple[int, ...]) -> GenerationRequest:
        """The greedy answer to a prompt of `prompts.recognize`."""
        return GenerationRequest(prompt_ids, 0, self.config.max_recognizer_tokens, GREEDY)

    def read(self, completion: Completion) -> tuple[str, Reading]:
        """An answer as text, and what it says."""
        text = completion_text(self.prompts.encoder, completion)
        reading = parse_answer(
            text, self.prompts.labels, thinking=self.config.thinking, finished=completion.finished
        )
        return text, reading

    def read_all(self, generator: Generator, requests: Sequence[GenerationRequest]) -> list[Reading]:
        """The readings of many answers, in one generator call; none for no request."""
        return [self.read(completion)[1] for completion in (generator.generate(requests) if requests else [])]

    def read_last_turns(self, generator: Generator, dialogues: Sequence[Sequence[Turn]]) -> list[Reading]:
        """Greedy readings of each dialogue's last turn, in one generator call."""
        prompts = [self.prompts.recognize(turns) for turns in dialogues]
        return self.read_all(generator, [self.greedy_request(prompt) for prompt in prompts])


@dataclass(frozen=True)
class Responder:
    """Says a dialogue's next turn, in an emotion it is asked for."""

    prompts: PromptBuilder
    config: SelfPlayConfig

    def request(self, prompt_ids: tuple[int, ...], seed: int) -> GenerationRequest:
        """A sampled reply to a prompt of `prompts.respond`."""
        return GenerationRequest(prompt_ids, seed, self.config.max_utterance_tokens, self.config.temperature)

    def gate(
        self, turns: Sequence[Turn], speaker: str, completion: Completion
    ) -> tuple[str, tuple[Gate, ...]]:
        """A reply as text, not yet cleaned, and the gates it fails.

        Args:
            turns: the dialogue that `speaker` replies to.
        """
        text = completion_text(self.prompts.encoder, completion)
        shown = [*turns[-(self.prompts.history_turns + 1) :], Turn(speaker, "")]
        bounds = (self.config.min_utterance_words, self.config.max_utterance_words)
        return text, failed_gates(text, shown, self.prompts.labels, *bounds, completion.finished)
