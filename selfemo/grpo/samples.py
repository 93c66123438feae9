"""Defines one training sample: the ids that the engine sampled, and the figures that the loss needs.

The same dataclass serves SFT (no advantage, no rollout logprobs) and SELF-GRPO. It holds token ids and Python
floats, and no tensors: the learner packs samples into tensors, and a sample can be logged, stored and
compared as it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSample:
    """A prompt with its completion."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """The tokens that the loss is taken over; never empty."""
    rollout_logprobs: tuple[float, ...] = ()
    """The engine's logprob of each completion id; empty for SFT."""
    advantage: float = 0.0
    """Group-relative advantage."""
    weight: float = 1.0
    """Weight of the sample's group in the loss; 0 for a group that carries no ranking."""
    episode: int = 0
    """Number of its episode in the iteration; 0 for SFT."""

    @property
    def length_tokens(self) -> int:
        """Tokens of prompt and completion.

        The model only predicts the last completion id, yet it counts, as in engines.
        """
        return len(self.prompt_ids) + len(self.completion_ids)
