"""What goes into and comes out of the engine: token ids only, so that what was sampled is what is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


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
