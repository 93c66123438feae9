"""The learner's state on disk, through megatron-core's dist_checkpointing: written in one layout, read in any.

A checkpoint is a directory that appears under its final name only when every rank has written its part.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing

from selfemo.errors import UserError
from selfemo.megatron.learner import Learner

SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


def save_checkpoint(learner: Learner, directory: Path, common: dict[str, Any]) -> None:
    """Write weights, optimizer state and `common` (plain values, the same on every rank). Collective."""
    learner.restore()
    temporary = directory.with_name(f".{directory.name}.tmp")
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save({**_sharded_state(learner, is_loading=False), "common": common}, str(temporary))
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(temporary, directory)
    dist.barrier()


def load_checkpoint(learner: Learner, directory: Path) -> dict[str, Any]:
    """Read weights and optimizer state into `learner`, whatever layout wrote them; returns `common`. Collective.

    Raises:
        UserError: there is no checkpoint at `directory`.
    """
    if not (directory / "metadata.json").exists():
        raise UserError(f"{directory}: not a checkpoint (no metadata.json): name a directory that a run wrote")
    state = dist_checkpointing.load({**_sharded_state(learner, is_loading=True)}, str(directory))
    for index, chunk in enumerate(learner.chunks):
        chunk.load_state_dict(state[_model_key(learner, index)])
    learner.optimizer.load_state_dict(state["optimizer"])
    common: dict[str, Any] = state["common"]
    return common


def _sharded_state(learner: Learner, is_loading: bool) -> dict[str, Any]:
    model = {_model_key(learner, index): chunk.sharded_state_dict() for index, chunk in enumerate(learner.chunks)}
    flat = model if len(model) > 1 else model["model"]
    metadata = {"metadata": SHARDING} if learner.config.parallel.distributed_optimizer else {}
    return {**model, "optimizer": learner.optimizer.sharded_state_dict(flat, is_loading=is_loading, **metadata)}


def _model_key(learner: Learner, index: int) -> str:
    return "model" if len(learner.chunks) == 1 else f"model{index}"
