"""Load Hugging Face weights into a Megatron model; each rank reads only the rectangles it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from selfemo.common.errors import UserError
from selfemo.models.architecture import Architecture
from selfemo.models.geometry import region
from selfemo.weights.hf_directory import HfDirectory
from selfemo.weights.rank_parameters import local_parameters


@torch.no_grad()
def load_hf_weights(
    chunks: Sequence[nn.Module], hf_dir: str | Path, architecture: Architecture, tp_rank: int, tp_size: int
) -> None:
    """Fill every parameter of the rank's model chunks from a Hugging Face directory, once each.

    Padding rows become zero. Values are converted to the parameters' dtype. An optimizer with
    master weights must reload them afterwards.

    Args:
        chunks: the rank's GPTModel, or its virtual-pipeline chunks in order.
        tp_rank, tp_size: the rank's place in its tensor-parallel group.

    Raises:
        UserError: the directory lacks a tensor, has one too many or of a wrong shape, or the model
            disagrees with the architecture.
    """
    source = HfDirectory(hf_dir)
    source.check(architecture)
    for parameter, target in local_parameters(chunks, architecture):
        placement = parameter.megatron(tp_rank, tp_size)
        if tuple(target.shape) != placement.shape:
            raise UserError(
                f"Megatron parameter {parameter.name} has shape {tuple(target.shape)}, expected "
                f"{placement.shape} for {architecture.family} at parallel.tensor={tp_size}: "
                "the model was built with another shape"
            )
        if not placement.is_whole:
            target.zero_()
        for box in placement.boxes:
            source.read_into(box.tensor, box.start, target[region(box.local_start, box.shape)])
    source.close()
