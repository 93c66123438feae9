"""One training sample: the ids the engine sampled, and what the loss needs to know about them.

The same dataclass serves SFT (no advantage, no rollout logprobs) and SELF-GRPO. It holds token ids and Python floats, no
tensors: packing into tensors is the learner's business, and a sample can be logged, stored and compared as it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSample:
    """A prompt with its completion."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """What the loss is taken over; never empty."""
    rollout_logprobs: tuple[float, ...] = ()
    """The engine's logprob of each completion id; empty for SFT."""
    advantage: float = 0.0
    """Group-relative advantage."""
    weight: float = 1.0
    """Weight of the sample's group in the loss; 0 for a group that carries no ranking."""

    @property
    def length_tokens(self) -> int:
        """Tokens the model reads: the last completion id is only predicted, yet counted, as engines count it."""
        return len(self.prompt_ids) + len(self.completion_ids)
