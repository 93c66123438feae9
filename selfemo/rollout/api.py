"""What goes into and comes out of the engine: token ids only, so that what was sampled is what is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from selfemo.common.errors import UserError, on_all_ranks

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to sample."""

    prompt_ids: tuple[int, ...]
    seed: int
    """From selfemo.common.seeds.derive_seed; the completion depends on it, the prompt and the weights alone."""
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


@dataclass(frozen=True)
class LiveParameter:
    """A parameter of the running engine, in its own fused and sharded layout."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Engine(Generator, Protocol):
    """Everything a run asks of an engine: this rank's own, or its part of one that spans ranks.

    It starts without weights, and `generate` raises until it has received some, so that no completion comes from weights that nobody sent.
    """

    max_length: int
    """Longest sequence, prompt and completion together, in tokens."""
    weight_version: int
    """Number of the last weights received; -1 before the first."""

    def receive_checkpoint_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Take full Hugging Face tensors by name (tied models: `lm_head.weight` too); each is valid until the next is asked for."""
        ...

    def copy_direct(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Take this rank's tensors in the layout of `live_parameters`; never called where that list lacks one in vLLM's layout."""
        ...

    def live_parameters(self) -> list[LiveParameter]:
        """This rank's parameters under vLLM's names, for direct copies; those with another layout may be missing."""
        ...

    def live_tensors(self) -> Mapping[str, torch.Tensor]:
        """This rank's parameters by name, not copied, for checksums; at least one. Greedy probes cover names that are not vLLM's."""
        ...

    def sleep(self) -> None:
        """Free memory for training; nothing is generated until `wake_up` and new weights."""
        ...

    def wake_up(self) -> None:
        """Be ready to receive weights."""
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
