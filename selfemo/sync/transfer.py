"""Bring the trainer's weights into the colocated engines in one of two ways, behind one interface.

CheckpointTransfer gathers full Hugging Face tensors on every rank and streams them through vLLM's
own loader: it works with any engine. DirectTransfer executes the reshard plan: it sends a rank only
the elements that the rank lacks and copies them into the live parameters, which the engine must
show in their plain layout (not quantised, not prepacked). A transfer to engines in other processes
would be a third class here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from selfemo.common.errors import UserError
from selfemo.config.layout import EngineLayout, TrainerLayout
from selfemo.models.architecture import Architecture
from selfemo.sync.direct import direct_tensors, live_shapes
from selfemo.sync.reshard import Traffic, build_plan, check_plan, traffic
from selfemo.weights.gather import WeightGroups, hf_tensors


class LiveParameter(Protocol):
    """A parameter of the running engine on this rank."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


class WeightReceiver(Protocol):
    """The methods of an engine that a transfer calls (selfemo.rollout.vllm_engine.RolloutEngine)."""

    def live_parameters(self) -> Sequence[LiveParameter]:
        """Return the engine's own parameters on this rank."""
        ...

    def receive_checkpoint_tensors(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load full Hugging Face tensors under a version number."""
        ...

    def copy_direct(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy tensors in the engine's own layout under a version number."""
        ...


@dataclass(frozen=True)
class TransferReport:
    """Path and cost of one transfer on this rank."""

    path: Literal["checkpoint", "direct"]
    seconds: float
    received_bytes: int
    """Bytes that crossed ranks, summed over the ranks of this rank's data-parallel replica."""
    lower_bound_bytes: int
    """Fewest bytes that any transfer between these layouts can move, over the same ranks."""


class WeightTransfer(Protocol):
    """A way to send weights. Every call is collective over all ranks."""

    def send(self, chunks: Sequence[nn.Module], engine: WeightReceiver, version: int) -> TransferReport:
        """Bring the chunks' weights into the engine under a version number."""
        ...


class CheckpointTransfer:
    """Sends full tensors, gathered bucket by bucket, through vLLM's loader."""

    def __init__(
        self, architecture: Architecture, groups: WeightGroups, moved: Traffic, bucket_bytes: int
    ) -> None:
        self._architecture, self._groups, self._moved, self._bucket_bytes = (
            architecture,
            groups,
            moved,
            bucket_bytes,
        )

    def send(self, chunks: Sequence[nn.Module], engine: WeightReceiver, version: int) -> TransferReport:
        started = time.perf_counter()
        element_bytes = next(chunks[0].parameters()).element_size()
        engine.receive_checkpoint_tensors(
            hf_tensors(chunks, self._architecture, self._groups, self._bucket_bytes, include_tied_head=True),
            version,
        )
        seconds = time.perf_counter() - started
        return TransferReport(
            "checkpoint",
            seconds,
            self._moved.checkpoint * element_bytes,
            self._moved.lower_bound * element_bytes,
        )


class DirectTransfer:
    """Executes the reshard plan into the engine's live parameters."""

    def __init__(
        self,
        architecture: Architecture,
        trainer: TrainerLayout,
        engine: EngineLayout,
        rank: int,
        dtype: torch.dtype,
        bucket_bytes: int,
    ) -> None:
        self._plan = build_plan(architecture, trainer, engine, trainer.replica_of(rank))
        check_plan(self._plan)
        self._moved = traffic(self._plan)
        self._rank, self._dtype, self._bucket_bytes = rank, dtype, bucket_bytes

    def tensors(self, chunks: Sequence[nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield this rank's live parameters in the form that `copy_direct` takes."""
        return direct_tensors(chunks, self._plan, self._rank, self._dtype, self._bucket_bytes)

    def send(self, chunks: Sequence[nn.Module], engine: WeightReceiver, version: int) -> TransferReport:
        started = time.perf_counter()
        engine.copy_direct(self.tensors(chunks), version)
        seconds = time.perf_counter() - started
        element_bytes = self._dtype.itemsize
        return TransferReport(
            "direct", seconds, self._moved.direct * element_bytes, self._moved.lower_bound * element_bytes
        )


def choose_transfer(
    mode: Literal["auto", "checkpoint", "direct"],
    architecture: Architecture,
    trainer: TrainerLayout,
    engine_layout: EngineLayout,
    groups: WeightGroups,
    engine: WeightReceiver,
    rank: int,
    bucket_bytes: int,
) -> WeightTransfer:
    """Return the transfer that `sync.mode` asks for.

    "auto" takes the direct one if the engine's live parameters have their plain layout.

    Raises:
        UserError: mode "direct", but the engine holds some parameter in another layout; names it.
    """
    plan = build_plan(architecture, trainer, engine_layout, trainer.replica_of(rank))
    live = {parameter.name: parameter for parameter in engine.live_parameters()}
    wanted = live_shapes(plan, rank)
    other = [name for name, shape in wanted.items() if name not in live or tuple(live[name].shape) != shape]
    if mode == "direct" and other:
        found = tuple(live[other[0]].shape) if other[0] in live else "no such parameter"
        raise UserError(
            f"sync.mode=direct: the engine holds {other[0]} as {found}, expected {wanted[other[0]]} (a "
            "quantised or prepacked layout?): set sync.mode=checkpoint"
        )
    if mode == "checkpoint" or other:
        return CheckpointTransfer(architecture, groups, traffic(plan), bucket_bytes)
    dtype = getattr(torch, live[next(iter(wanted))].dtype)
    return DirectTransfer(architecture, trainer, engine_layout, rank, dtype, bucket_bytes)
