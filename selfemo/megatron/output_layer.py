"""Takes the loss behind the decoder, where only positions that predict a completion token reach the output layer.

A sample is a long prompt and a short completion, and only completion tokens carry loss. GPTModel would compute logits of
every position; the functions here are its `output_processor` (megatron-core 0.18 and later), which takes over behind the
decoder on the rank that has the output layer. As the loss is taken there, a bf16 model's logits stay bf16 (Megatron's
Float16Module widens what the model returns), and the kernels may have hidden states and weight in place of logits
(train.fuse_output_layer).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig

from selfemo.megatron.losses import LossFunction, Predictions


@dataclass
class LossAtOutput:
    """Carries one micro-batch's loss through Megatron's schedule: taken at the output layer, asked for afterwards."""

    loss: LossFunction
    fuses: Callable[[int], bool]
    """Whether logits of so many bytes, on this rank, are better made chunk by chunk."""
    collected: dict[str, torch.Tensor] = field(default_factory=dict)

    def result(self, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """What the schedule asks for, given what the model returned: loss, token count (unused), what the step collects."""
        return loss, torch.zeros([], dtype=torch.int, device=loss.device), self.collected


def completion_loss(
    *,
    hidden_states: torch.Tensor,
    output_layer: ColumnParallelLinear,
    output_weight: torch.Tensor | None,
    loss_mask: torch.Tensor,
    config: TransformerConfig,
    context: LossAtOutput,
    **_: Any,
) -> torch.Tensor:
    """`context.loss` (fp32 scalar) of the N positions that `loss_mask` [1, T] (bool) marks.

    Fused, the output weight's gradient goes straight to the main gradient of Megatron's DDP, whose hook then finds none to
    add. That needs `overlap_grad_reduce` off, as wrap_chunks has it, on a GPU too: with it, DDP waits for each parameter's
    own gradient.
    """
    rows_N1H = _completion_rows(hidden_states, output_layer, loss_mask, config)
    weight_VH = output_layer.weight if output_weight is None else output_weight
    hidden_NH = rows_N1H.squeeze(1)
    if context.fuses(len(hidden_NH) * len(weight_VH) * weight_VH.element_size()):
        wanted = torch.is_grad_enabled() and weight_VH.requires_grad  # not of a frozen one
        main_grad_VH = weight_VH.main_grad if wanted else None  # megatron-private
        predictions = Predictions(hidden_NH, weight_VH=weight_VH, weight_main_grad_VH=main_grad_VH)
    else:
        logits_N1V, _bias = output_layer(rows_N1H, weight=output_weight)
        # Squeezed, not indexed: the backward of an index would copy the gradient into a second matrix of zeros.
        predictions = Predictions(hidden_NH, logits_NV=logits_N1V.squeeze(1))
    loss, collected = context.loss(predictions)
    context.collected.update(collected)
    return loss


def completion_logits(
    *,
    hidden_states: torch.Tensor,
    output_layer: ColumnParallelLinear,
    output_weight: torch.Tensor | None,
    loss_mask: torch.Tensor,
    config: TransformerConfig,
    **_: Any,
) -> torch.Tensor:
    """Logits [1, N, V/tp] of the N positions that `loss_mask` [1, T] (bool) marks: an output processor as well."""
    rows_N1H = _completion_rows(hidden_states, output_layer, loss_mask, config)
    logits_N1V, _bias = output_layer(rows_N1H, weight=output_weight)
    return logits_N1V.transpose(0, 1).contiguous()


def _completion_rows(
    hidden_states: torch.Tensor,
    output_layer: ColumnParallelLinear,
    loss_mask: torch.Tensor,
    config: TransformerConfig,
) -> torch.Tensor:
    """hidden_states [T, 1, H] (or this rank's part of T, under sequence parallelism) -> the marked rows [N, 1, H]."""
    if config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False, group=output_layer.tp_group
        )
    return hidden_states[loss_mask.reshape(-1)]
