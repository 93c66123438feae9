"""The fused SELF-GRPO kernels: logits (or hidden states), sampled ids and rewards in; loss, logprobs, entropies and gradients out.

The only place in this project that computes log-probabilities, entropies, advantages and losses. docs/kernels.md explains what
is fused, the mathematics of each gradient, and how it is verified without a GPU. Importing this needs neither CUDA nor Triton.
"""

from selfemo.kernels.advantages import group_advantages
from selfemo.kernels.config import AdvantageConfig, BatchCounts, LossConfig
from selfemo.kernels.logprobs import token_logprobs
from selfemo.kernels.loss import grpo_loss
from selfemo.kernels.results import GroupAdvantages, LossMetrics, LossResult, TokenLogprobs

__all__ = [
    "AdvantageConfig",
    "BatchCounts",
    "GroupAdvantages",
    "LossConfig",
    "LossMetrics",
    "LossResult",
    "TokenLogprobs",
    "group_advantages",
    "grpo_loss",
    "token_logprobs",
]
