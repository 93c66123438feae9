"""Computes log-probabilities, entropies, advantages and the losses of SELF-GRPO in fused kernels.

Logits (or hidden states), sampled ids and rewards go in; loss, logprobs, entropies and gradients come
out. Nothing else in this project computes them. docs/kernels.md explains the operations that are fused,
the mathematics of each gradient, and how it is verified without a GPU.

Importing this package needs neither CUDA nor Triton. An operation is imported when it is first asked
for, because planner and report read `PRESETS` and do without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from selfemo.kernels.config import PRESETS, AdvantageConfig, BatchCounts, LossConfig, Preset

if TYPE_CHECKING:
    from selfemo.kernels.advantages import group_advantages
    from selfemo.kernels.logprobs import token_logprobs
    from selfemo.kernels.loss import grpo_loss
    from selfemo.kernels.results import GroupAdvantages, LossMetrics, LossResult, TokenLogprobs

_WITH_TORCH = {
    "group_advantages": "advantages",
    "token_logprobs": "logprobs",
    "grpo_loss": "loss",
    "GroupAdvantages": "results",
    "LossMetrics": "results",
    "LossResult": "results",
    "TokenLogprobs": "results",
}
"""Names that need torch, each with the module that defines it."""

__all__ = [
    "PRESETS",
    "AdvantageConfig",
    "BatchCounts",
    "GroupAdvantages",
    "LossConfig",
    "LossMetrics",
    "LossResult",
    "Preset",
    "TokenLogprobs",
    "group_advantages",
    "grpo_loss",
    "token_logprobs",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
