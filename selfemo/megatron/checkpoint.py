"""Write the learner's tensors in one parallel layout and read them in any, through megatron-core's
dist_checkpointing.

A write has two halves. `TensorWrite` begins it; with `in_background` a forked process writes the
weights of that moment while training goes on. `TensorWrite.is_done` ends it on all ranks alike.
selfemo.run.checkpoints decides names, digests and which directories are checkpoints of a run.

megatron-core reads its metadata with pickle, and empty per-module states with
torch.load(weights_only=False), either of which can run code. `read_tensors` therefore first reads
both with readers that build only tensor records and plain values, and refuses anything else. It
also asks for tensors alone: Transformer Engine unpickles the bytes of a tensor that is a module's
`_extra_state`, and only its modules and FP8 have one.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch.distributed.checkpoint import CheckpointException

from selfemo.common.errors import UserError
from selfemo.megatron.checkpoint_writer import ForkedResult, write_refusal
from selfemo.megatron.frozen import without_frozen
from selfemo.megatron.learner import Learner
from selfemo.weights.torch_dist import FORMAT_NAME, LOAD_ERRORS, CheckpointReader, read_common

SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
}  # megatron-private
"""Gather a sharded optimizer over gloo into the host memory of each first data-parallel rank, which
writes it. Without the second setting NCCL gathers it on every GPU, where the engine is awake, and
needs memory for a bucket of all gradients in fp32, twice, and a shard.
"""
READ_ERRORS = (
    CheckpointException,
    CheckpointingException,
    OSError,
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    AssertionError,
    pickle.UnpicklingError,
)
"""Exceptions that megatron-core and torch raise for a checkpoint that is damaged or of another
model.
"""


class TensorWrite:
    """One write of weights (and optimizer state, once a step has been taken) into an existing,
    empty directory. Collective.
    """

    def __init__(
        self,
        learner: Learner,
        directory: Path,
        common: dict[str, Any],
        *,
        weights_only: bool = False,
        in_background: bool = False,
    ) -> None:
        """Begin the write; without `in_background` also finish it.

        Args:
            common: plain values, the same on every rank.

        Raises:
            UserError: a file cannot be written.
        """
        learner.restore()
        self._directory, self._calls = directory, AsyncCallsQueue()
        # The default is a spawned manager process: it takes seconds to start and outlives a kill.
        filesystem_async._results_queue = ForkedResult()  # megatron-private
        with_optimizer = not weights_only and learner.has_optimizer_state
        state = {
            **_sharded_state(learner, with_optimizer, is_loading=False),
            "common": {**common, "optimizer": with_optimizer},
        }
        try:
            # The default, "nvrx", is a separate package that needs a GPU.
            request = dist_checkpointing.save(
                state, str(directory), async_sharded_save=True, async_strategy="mcore"
            )
            if in_background:
                self._calls.schedule_async_request(request)
            else:
                request.execute_sync()
        except (CheckpointException, OSError, RuntimeError) as error:
            raise write_refusal(error, self._directory.parent) from error
        finally:
            # The request holds this queue, which serves once; another save makes its own.
            filesystem_async._results_queue = None  # megatron-private

    def is_done(self, blocking: bool = False) -> bool:
        """Return whether every rank has written its part; `blocking` waits until it has.

        Raises:
            UserError: a file cannot be written.
        """
        try:
            self._calls.maybe_finalize_async_calls(blocking)
        except (CheckpointException, OSError, RuntimeError) as error:
            raise write_refusal(error, self._directory.parent) from error
        return self._calls.get_num_unfinalized_calls() == 0


def read_tensors(learner: Learner, directory: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """Read weights and, if they were written, optimizer moments and step into `learner`.
    Collective.

    The layout that wrote the checkpoint may differ from the learner's.

    Returns:
        The `common` values.

    Raises:
        UserError: the checkpoint is damaged, holds something other than tensors and plain values,
            or is of another model.
    """
    common = _vetted_common(directory)
    with_optimizer = not weights_only and bool(common["optimizer"])
    learner.restore()
    try:
        state = dist_checkpointing.load(
            _without_objects(_sharded_state(learner, with_optimizer, is_loading=True)), str(directory)
        )
    except READ_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{directory}: cannot be loaded into this model ({reason}): damaged, or a checkpoint of "
            "another model"
        ) from error
    for index, chunk in enumerate(learner.chunks):
        _load_tensors(chunk, state[_model_key(learner, index)])
    learner.frozen_outputs.forget()
    if with_optimizer:
        learner.optimizer.load_state_dict(state["optimizer"])
    else:
        learner.optimizer.reload_model_params()
    return common


def write_snapshot(learner: Learner, snapshot: Sequence[torch.Tensor], directory: Path) -> None:
    """Write weights that `learner.snapshot()` returned, without optimizer state. Collective."""
    with learner.weights_of(list(snapshot)):
        TensorWrite(learner, directory, {}, weights_only=True)


def read_snapshot(learner: Learner, directory: Path) -> list[torch.Tensor]:
    """Read the weights that `write_snapshot` wrote, in this layout's shards. Collective.

    Raises:
        UserError: as `read_tensors`.
    """
    snapshot = learner.snapshot()
    with learner.weights_of(snapshot):
        read_tensors(learner, directory, weights_only=True)
    return snapshot


def _sharded_state(learner: Learner, with_optimizer: bool, is_loading: bool) -> dict[str, Any]:
    model = {
        _model_key(learner, index): chunk.sharded_state_dict() for index, chunk in enumerate(learner.chunks)
    }
    if not with_optimizer:
        return model
    flat = model if len(model) > 1 else model["model"]
    metadata = {"metadata": SHARDING} if learner.layout.sizes.distributed_optimizer else {}
    optimizer = learner.optimizer.sharded_state_dict(flat, is_loading=is_loading, **metadata)
    return {**model, "optimizer": without_frozen(optimizer, learner.train.frozen_layers)}


def _without_objects(state: dict[str, Any]) -> dict[str, Any]:
    """Leave the modules' objects out of a request, so that nothing but tensors reaches a module.

    Without FP8 they are empty (transformer_engine/pytorch/ops/op.py, `get_extra_state`), and a
    checkpoint of the converter or of another layer spec lacks some of them.
    """
    return {
        name: {key: value for key, value in part.items() if not isinstance(value, ShardedObject)}
        if name.startswith("model")
        else part
        for name, part in state.items()
    }


def _load_tensors(chunk: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Load a chunk's tensors; nothing but extra states may be missing.

    Raises:
        RuntimeError: a tensor is missing, or is of no module.
    """
    found = chunk.load_state_dict(tensors, strict=False)
    wrong = [key for key in found.missing_keys if not key.endswith("_extra_state")] + found.unexpected_keys
    if wrong:
        raise RuntimeError(f"tensors of the checkpoint and of the model differ: {', '.join(wrong)}")


def _model_key(learner: Learner, index: int) -> str:
    return "model" if len(learner.chunks) == 1 else f"model{index}"


def _vetted_common(directory: Path) -> dict[str, Any]:
    """Return `common`, after reading everything that megatron-core will unpickle with readers that
    cannot run code.
    """
    if not (directory / FORMAT_NAME).is_file():
        raise UserError(
            f"{directory}: not a checkpoint (no {FORMAT_NAME}): name a directory that a run wrote"
        )
    try:
        for blob in CheckpointReader(directory).byte_blobs():
            torch.load(io.BytesIO(blob), weights_only=True)
        common = read_common(directory)["common"]
    except LOAD_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{directory}: not a readable checkpoint ({reason}): damaged, or not written by a run"
        ) from None
    if not isinstance(common, dict) or not isinstance(common.get("optimizer"), bool):
        raise UserError(
            f"{directory}: its plain values are not those of a run's checkpoint: name a directory that a "
            "run wrote"
        )
    return common
