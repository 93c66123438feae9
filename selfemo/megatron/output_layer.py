"""What becomes of the decoder's hidden states: only the positions that predict a completion token reach the output layer.

A sample is a long prompt and a short completion, and only completion tokens carry loss. GPTModel would compute logits of every
position; the functions here are its `output_processor` (megatron-core 0.18 and later), which takes over behind the decoder on the
rank that has the output layer.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig


def completion_logits(
    *,
    hidden_states: torch.Tensor,
    output_layer: ColumnParallelLinear,
    output_weight: torch.Tensor | None,
    loss_mask: torch.Tensor,
    config: TransformerConfig,
    **_: Any,
) -> torch.Tensor:
    """Logits [1, N, V/tp] of the N positions that `loss_mask` [1, T] (bool) marks; for GPTModel.forward(output_processor=...)."""
    rows_N1H = _completion_rows(hidden_states, output_layer, loss_mask, config)
    logits_N1V, _bias = output_layer(rows_N1H, weight=output_weight)
    return logits_N1V.transpose(0, 1).contiguous()


def _completion_rows(
    hidden_states: torch.Tensor, output_layer: ColumnParallelLinear, loss_mask: torch.Tensor, config: TransformerConfig
) -> torch.Tensor:
    """hidden_states [T, 1, H] (or this rank's part of T, under sequence parallelism) -> the marked rows [N, 1, H]."""
    if config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False, group=output_layer.tp_group)
    return hidden_states[loss_mask.reshape(-1)]
