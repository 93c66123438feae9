"""Take the loss right after the decoder, and send only positions that predict a completion token
through the output layer.

A sample is a long prompt and a short completion, and only completion tokens carry loss, but
GPTModel would compute logits of every position. The functions here are its `output_processor`
(megatron-core 0.18 and later), which it calls after the decoder on the rank that has the output
layer. Because the loss is taken there, a bf16 model's logits stay bf16 (Megatron's Float16Module
widens the model's return value), and the kernels can take hidden states and weight in place of
logits (train.fuse_output_layer).
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
    """Carries one micro-batch's loss through Megatron's schedule: the output layer takes it, and
    the schedule asks for it afterwards.
    """

    loss: LossFunction
    fuses: Callable[[int], bool]
    """Given the bytes of a micro-batch's logits on this rank: whether to compute them chunk by
    chunk.
    """
    collected: dict[str, torch.Tensor] = field(default_factory=dict)

    def result(self, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Return the three values that the schedule expects: loss, token count (unused), and the
        tensors that the step collects.

        Args:
            loss: the model's return value.
        """
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
    """Return `context.loss` (fp32 scalar) of the N positions that `loss_mask` [1, T] (bool) marks.

    If fused, the output weight's gradient goes straight to the main gradient of Megatron's DDP,
    whose hook then finds none to add. That requires `overlap_grad_reduce` off, on a GPU too, as
    wrap_chunks sets it: with it on, DDP waits for each parameter's own gradient.
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
        # squeeze, not an index, whose backward would copy the gradient into a second matrix of zeros.
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
    """Return logits [1, N, V/tp] of the N positions that `loss_mask` [1, T] (bool) marks.

    This is an output processor as well.
    """
    rows_N1H = _completion_rows(hidden_states, output_layer, loss_mask, config)
    logits_N1V, _bias = output_layer(rows_N1H, weight=output_weight)
    return logits_N1V.transpose(0, 1).contiguous()


def _completion_rows(
    hidden_states: torch.Tensor,
    output_layer: ColumnParallelLinear,
    loss_mask: torch.Tensor,
    config: TransformerConfig,
) -> torch.Tensor:
    """Select the marked rows [N, 1, H] of hidden_states [T, 1, H].

    Under sequence parallelism hidden_states is this rank's part of T and is gathered first.
    """
    if config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False, group=output_layer.tp_group
        )
    return hidden_states[loss_mask.reshape(-1)]
