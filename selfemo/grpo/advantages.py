"""Scored groups into training samples: advantages are computed here, once, over the whole rollout batch.

Groups straddle micro-batches and data-parallel ranks, so a loss that normalised inside a micro-batch would depend on the
layout. Every rank computes the advantages of every group from the same rewards; they are a few floats per sample.
"""

from __future__ import annotations

from selfemo.config import RunConfig
from selfemo.kernels import LossConfig


def loss_config(config: RunConfig) -> LossConfig:
    """The kernels' configuration of `algorithm`: a published preset with this run's clips, KL and temperature."""
    algorithm = config.algorithm
    changes: dict[str, object] = {
        "clip_low": algorithm.clip_low,
        "clip_high": algorithm.clip_high,
        "kl_beta": algorithm.kl_beta,
        "entropy_weight": algorithm.entropy_weight,
        "truncated_importance_cap": algorithm.truncated_importance_cap,
        "temperature": config.selfplay.temperature,
    }
    if algorithm.loss == "dr_grpo":
        changes["max_length"] = max(config.selfplay.max_answer_tokens, config.selfplay.max_utterance_tokens)
    return LossConfig.preset(algorithm.loss, **changes)
