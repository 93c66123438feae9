"""Defines the engine's input and output: token ids only, so that the ids sampled are the ids trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from selfemo.common.errors import UserError, on_all_ranks

if TYPE_CHECKING:
    import torch

MAX_SCORED_IDS = 128
"""Most tokens that vLLM scores for one request (MAX_LOGPROB_TOKEN_IDS in vllm/sampling_params.py)."""


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to sample."""

    prompt_ids: tuple[int, ...]
    seed: int
    """From selfemo.common.seeds.derive_seed. The completion depends on the seed, the prompt and the weights
    alone."""
    max_tokens: int
    temperature: float
    """0 decodes greedily."""
    scored_ids: tuple[int, ...] = ()
    """Tokens whose probability as the completion's first token is asked for; at most `MAX_SCORED_IDS`."""


@dataclass(frozen=True)
class Completion:
    """The engine's answer to one request."""

    token_ids: tuple[int, ...]
    """Sampled ids, with the end-of-turn token if it was sampled."""
    logprobs: tuple[float, ...]
    """Natural-log probability of each sampled id under the engine's weights at the request's temperature (1
    if greedy)."""
    finished: bool
    """True if the model ended its turn; False if max_tokens cut it."""
    scored_logprobs: tuple[float, ...] = ()
    """Natural-log probability of each of the request's `scored_ids` as the first token."""


class Generator(Protocol):
    """Completes prompts: the colocated engine does in production; tests of pure logic may script one."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Generate one completion per request, in order."""
        ...


class Session(Protocol):
    """Requests in progress on an engine: more may be added while others generate."""

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """Add requests. They are numbered 0, 1, 2, ... in the order in which the session got them."""
        ...

    def advance(self) -> list[tuple[int, Completion]]:
        """Generate until a request ends.

        Returns:
            (number, completion) of those that ended, each once, by number; empty if none is in progress.
        """
        ...


@dataclass(frozen=True)
class LiveParameter:
    """A parameter of the running engine, in its own fused and sharded layout."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Engine(Generator, Protocol):
    """The methods that a run needs of an engine: this rank's own, or its part of one that spans ranks.

    It starts without weights, and `generate` raises until it has received some, so that no completion comes
    from weights that nobody sent.
    """

    max_length: int
    """Longest sequence, prompt and completion together, in tokens."""
    weight_version: int
    """Number of the last weights received; -1 before the first."""

    def session(self) -> AbstractContextManager[Session]:
        """Begin a session, the only one at its time; on exit, requests that have not ended are dropped.

        The ranks of an engine that spans several make the same calls of it, in the same order.
        """
        ...

    def receive_checkpoint_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load full Hugging Face tensors by name (tied models: `lm_head.weight` too).

        Each tensor is valid until the next is requested.
        """
        ...

    def copy_direct(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy this rank's tensors, in the layout of `live_parameters`.

        Never called if that list lacks a parameter of vLLM's layout.
        """
        ...

    def live_parameters(self) -> list[LiveParameter]:
        """List this rank's parameters under vLLM's names, for direct copies.

        Parameters with another layout may be missing.
        """
        ...

    def live_tensors(self) -> Mapping[str, torch.Tensor]:
        """Return this rank's parameters by name, not copied, for checksums; at least one.

        Greedy probes cover parameters whose names are not vLLM's.
        """
        ...

    def sleep(self) -> None:
        """Free memory for training; nothing is generated until `wake_up` and new weights."""
        ...

    def wake_up(self) -> None:
        """Prepare to receive weights."""
        ...


def check_room(requests: Sequence[GenerationRequest], max_length: int, where: str = "") -> None:
    """Raise if a prompt plus its max_tokens exceeds `max_length`.

    vLLM rejects a long prompt with its own error, and truncates a long completion silently.

    Args:
        max_length: the engine's longest sequence, prompt and completion together, in tokens.
        where: begins the message, such as "runs/a/model: ".

    Raises:
        UserError: a prompt leaves no room for its completion.
    """
    longest = max((len(r.prompt_ids) + r.max_tokens for r in requests), default=0)
    if longest > max_length:
        message = (
            f"{where}a prompt and its completion may take {longest} tokens, "
            f"model.max_length={max_length} holds fewer: "
            "lower corpus.history_turns or corpus.max_turn_tokens, or raise model.max_length"
        )
        raise on_all_ranks(UserError(message))  # every rank checks the same requests
