"""Choose the CPU or the GPU for this process, and hold every setting that differs between them.

`select_device` decides once per process; the rest of the code asks the returned Device. On a GPU
nothing is changed: NCCL, Transformer Engine's layer spec and FusedAdam, CUDA vLLM. On a CPU: gloo,
megatron-core's local spec through the backend in cpu_backend.py, and an AdamW with FusedAdam's
state layout, so that checkpoints have one format.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from selfemo.common.errors import UserError


@dataclass(frozen=True)
class Device:
    """The device that this process computes on."""

    kind: str
    """"cpu" or "cuda"."""
    backend: str
    """torch.distributed backend: "gloo" or "nccl"."""
    torch_device: torch.device

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    @property
    def group_device(self) -> torch.device | None:
        """The GPU that process groups are bound to; None on a CPU.

        NCCL then starts as a group is made, and fails there if it is the wrong one.
        """
        return self.torch_device if self.is_cuda else None

    def synchronize(self) -> None:
        """Wait for queued device work, so that a time measured afterwards includes it."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def release_cached(self) -> None:
        """Give memory that torch's allocator keeps for later back to the device."""
        if self.is_cuda:
            torch.cuda.empty_cache()


def select_device() -> Device:
    """Choose the GPU of this process's LOCAL_RANK if CUDA is available, else the CPU, and prepare
    megatron-core for it.

    Raises:
        UserError: the node has fewer GPUs than local ranks, or megatron-core is not the version the
            CPU backend knows.
    """
    if not torch.cuda.is_available():
        from selfemo.megatron import cpu_adam, cpu_backend

        cpu_backend.install()
        cpu_adam.install()
        return Device("cpu", "gloo", torch.device("cpu"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK {local_rank} has no GPU: this node shows {torch.cuda.device_count()}; lower "
            "--nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    return Device("cuda", "nccl", torch.device("cuda", local_rank))


def transformer_options(device: Device, share_prompts: bool = False) -> dict[str, Any]:
    """Return the TransformerConfig fields that depend on the device: fused kernels and
    initialisation.
    """
    fused = device.is_cuda
    return {
        "use_cpu_initialization": not device.is_cuda,
        # megatron-core's own output layer needs apex for it; Transformer Engine's layers, which would not,
        # are switched one by one (optimizer.fuse_weight_gradients).
        "gradient_accumulation_fusion": False,
        # The fused kernel counts positions from each segment's start.
        "apply_rope_fusion": fused and not share_prompts,
        "persist_layer_norm": fused,
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": fused,
        "masked_softmax_fusion": False,  # our core attention has no softmax module
        # It casts the gradient to bf16; selfemo.kernels computes the loss.
        "cross_entropy_loss_fusion": False,
        "batch_p2p_comm": device.is_cuda,  # gloo has no batched isend/irecv
    }
