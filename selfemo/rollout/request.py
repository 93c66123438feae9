"""What goes into and comes out of the engine: token ids only, so that what was sampled is what is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from selfemo.errors import UserError, on_all_ranks


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to sample."""

    prompt_ids: tuple[int, ...]
    seed: int
    """From selfemo.seeds.derive_seed; the completion depends on it, the prompt and the weights alone."""
    max_tokens: int
    temperature: float
    """0 decodes greedily."""


@dataclass(frozen=True)
class Completion:
    """What the engine sampled for one request."""

    token_ids: tuple[int, ...]
    """Sampled ids, the end-of-turn token included when it was sampled."""
    logprobs: tuple[float, ...]
    """Natural-log probability of each sampled id under the engine's weights at the request's temperature (1 where greedy)."""
    finished: bool
    """True when the model ended its turn; False when max_tokens cut it."""


class Generator(Protocol):
    """Anything that completes prompts: the colocated engine in production; tests of pure logic may script one."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """One completion per request, in order."""
        ...


def check_room(requests: Sequence[GenerationRequest], max_length: int, where: str = "") -> None:
    """Refuse requests that do not fit: an engine stops at a longer prompt in its own words, and cuts a completion without a word.

    Args:
        max_length: the engine's longest sequence, prompt and completion together, in tokens.
        where: begins the message, such as "runs/a/model: ".

    Raises:
        UserError: a prompt leaves no room for its completion.
    """
    longest = max((len(r.prompt_ids) + r.max_tokens for r in requests), default=0)
    if longest > max_length:
        message = (
            f"{where}a prompt and its completion may take {longest} tokens, model.max_length={max_length} holds fewer: "
            "lower corpus.history_turns or corpus.max_turn_tokens, or raise model.max_length"
        )
        raise on_all_ranks(UserError(message))  # every rank is asked the same
