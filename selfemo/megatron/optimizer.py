"""Wrap the model in Megatron's DDP and build its optimizer from a TrainConfig.

Gradients are reduced and kept in fp32. The learning rate is a pure function of the step, set before
each step, so there is no scheduler state to save or lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from selfemo.common.errors import UserError
from selfemo.config.layout import Layout
from selfemo.config.schema import TrainConfig


def wrap_chunks(
    chunks: Sequence[torch.nn.Module],
    config: TransformerConfig,
    sizes: Layout,
    fuses_gradients: bool = False,
) -> list[DistributedDataParallel]:
    """Wrap each chunk in Megatron's DDP (and Float16Module in bf16), with contiguous fp32 gradient
    buffers.

    Args:
        fuses_gradients: as train.fuse_weight_gradients.
    """
    if fuses_gradients:
        fuse_weight_gradients(chunks)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=sizes.distributed_optimizer,
        overlap_grad_reduce=False,
        check_for_nan_in_grad=False,  # the learner checks once per step, on all ranks alike
    )
    return [
        DistributedDataParallel(
            config,
            ddp_config,
            Float16Module(config, chunk) if config.bf16 else chunk,
            disable_bucketing=index > 0,
        )
        for index, chunk in enumerate(chunks)
    ]


def fuse_weight_gradients(chunks: Sequence[torch.nn.Module]) -> None:
    """Make every layer that can add its weight gradient to DDP's fp32 buffer in the matrix product.

    Transformer Engine's linears can; they read the switch at each forward pass (2.20.2,
    pytorch/module/linear.py, `fuse_wgrad_accumulation`). megatron-core's configuration would set it on
    its own output layer as well, which then needs apex.
    """
    for chunk in chunks:
        for module in chunk.modules():
            if hasattr(module, "fuse_wgrad_accumulation"):
                module.fuse_wgrad_accumulation = True


def build_optimizer(
    wrapped: Sequence[DistributedDataParallel], config: TrainConfig, sizes: Layout, bf16: bool
) -> MegatronOptimizer:
    """Build a fresh AdamW over the wrapped chunks.

    With parallel.distributed_optimizer its state is sharded over data-parallel ranks.

    Raises:
        UserError: train.offload_during_rollout is set on a GPU in fp32. There the optimizer holds
            the weights themselves, so offloading would move them too.
    """
    is_cuda = next(wrapped[0].parameters()).is_cuda
    if config.offload_during_rollout and not bf16 and is_cuda:
        raise UserError(
            "train.offload_during_rollout moves an fp32 model's weights off the GPU as well: set "
            "train.dtype=bfloat16"
        )
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_eps=config.adam_eps,
            clip_grad=config.clip_grad,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=sizes.distributed_optimizer,
        ),
        list(wrapped),
        # A checkpoint gathers the shards over the gloo groups.
        use_gloo_process_groups=is_cuda and sizes.distributed_optimizer,
    )
    if sizes.distributed_optimizer and not is_cuda:
        for part in optimizer.chained_optimizers:  # megatron-private
            # On CPU every group is gloo already.
            part.data_parallel_group_gloo = part.data_parallel_group  # megatron-private
    return optimizer


def set_hyperparameters(optimizer: MegatronOptimizer, learning_rate: float, weight_decay: float) -> None:
    """Set learning rate and weight decay of every parameter group for the next step.

    Norms and biases (wd_mult 0) do not decay.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)


@contextmanager
def counting_empty_groups(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Count the block's step once in parameter groups that are empty on this rank (frozen layers).

    A checkpoint stores the groups of rank 0, whose step every rank goes on with. Transformer Engine's Adam
    counts there since 2.20 (pytorch/optimizers/fused_adam.py, `step`), a rank without any parameter never.
    """
    before = [group.get("step", 0) for group in optimizer.param_groups]
    yield
    for group, taken in zip(optimizer.param_groups, before, strict=True):
        if not group["params"]:
            group["step"] = taken + 1


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, final_share: float) -> float:
    """Return the learning rate of a linear warm-up to `peak`, then cosine decay to `final_share * peak`.

    `step` counts from 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (final_share + (1 - final_share) * falling)


def warmup_linear(step: int, total_steps: int, warmup_steps: int, peak: float, final_share: float) -> float:
    """Return the learning rate of a linear warm-up to `peak`, then a straight line to
    `final_share * peak` at the last step.

    `step` counts from 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (1 - (1 - final_share) * min(1.0, progress))
