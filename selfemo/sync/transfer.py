"""Bring the trainer's weights into the colocated engines in one of two ways, behind one interface.

CheckpointTransfer gathers full Hugging Face tensors on every rank and streams them through vLLM's
own loader: it works with any engine. DirectTransfer executes the reshard plan: it sends a rank only
the elements that the rank lacks and copies them into the live parameters, which the engine must
show in their plain layout (not quantised, not prepacked). A transfer to engines in other processes
would be a third class here.
"""

from __future__ import annotations

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
    """Path and traffic of one transfer on this rank."""

    path: Literal["checkpoint", "direct"]
    received_bytes: int
    """Bytes that crossed ranks, summed over the ranks of this rank's data-parallel replica."""
    lower_bound_bytes: int
    """Fewest bytes that any transfer between these layouts can move, over the same ranks."""


class WeightTransfer(Protocol):
    """A way to send weights. Every call is collective over all ranks."""

    def send(
        self, chunks: Sequence[nn.Module], engine: WeightReceiver, version: int, only_trained: bool = False
    ) -> TransferReport:
        """Bring the chunks' weights into the engine under a version number.

        Args:
            only_trained: leave out frozen weights, which the engine has from an earlier call.
        """
        ...


class CheckpointTransfer:
    """Sends full tensors, gathered bucket by bucket, through vLLM's loader."""

    def __init__(
        self,
        architecture: Architecture,
        groups: WeightGroups,
        whole: Traffic,
        trained: Traffic,
        bucket_bytes: int,
        frozen_layers: int,
    ) -> None:
        self._architecture, self._groups, self._bucket_bytes = architecture, groups, bucket_bytes
        self._frozen_layers, self._moved = frozen_layers, {False: whole, True: trained}

    def send(
        self, chunks: Sequence[nn.Module], engine: WeightReceiver, version: int, only_trained: bool = False
    ) -> TransferReport:
        element_bytes = next(chunks[0].parameters()).element_size()
        frozen = self._frozen_layers if only_trained else 0
        engine.receive_checkpoint_tensors(
            hf_tensors(chunks, self._architecture, self._groups, self._bucket_bytes, True, frozen), version
        )
        moved = self._moved[only_trained]
        return TransferReport(
            "checkpoint", moved.checkpoint * element_bytes, moved.lower_bound * element_bytes
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
        frozen_layers: int = 0,
    ) -> None:
        targets = trainer.replica_of(rank)
        self._plans = {
            only_trained: build_plan(architecture, trainer, engine, targets, frozen_layers * only_trained)
            for only_trained in (False, True)
        }
        for plan in self._plans.values():
            check_plan(plan)
        self._moved = {only_trained: traffic(plan) for only_trained, plan in self._plans.items()}
        self._rank, self._dtype, self._bucket_bytes = rank, dtype, bucket_bytes

    def tensors(
        self, chunks: Sequence[nn.Module], only_trained: bool = False
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield this rank's live parameters in the form that `copy_direct` takes."""
        return direct_tensors(chunks, self._plans[only_trained], self._rank, self._dtype, self._bucket_bytes)

    def send(
        self, chunks: Sequence[nn.Module], engine: WeightReceiver, version: int, only_trained: bool = False
    ) -> TransferReport:
        engine.copy_direct(self.tensors(chunks, only_trained), version)
        moved, element_bytes = self._moved[only_trained], self._dtype.itemsize
        return TransferReport("direct", moved.direct * element_bytes, moved.lower_bound * element_bytes)


def choose_transfer(
    mode: Literal["auto", "checkpoint", "direct"],
    architecture: Architecture,
    trainer: TrainerLayout,
    engine_layout: EngineLayout,
    groups: WeightGroups,
    engine: WeightReceiver,
    rank: int,
    bucket_bytes: int,
    frozen_layers: int = 0,
) -> WeightTransfer:
    """Return the transfer that `sync.mode` asks for.

    "auto" takes the direct one if the engine's live parameters have their plain layout.

    Raises:
        UserError: mode "direct", but the engine holds some parameter in another layout; names it.
    """
    targets = trainer.replica_of(rank)
    plan = build_plan(architecture, trainer, engine_layout, targets)
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
        trained = build_plan(architecture, trainer, engine_layout, targets, frozen_layers)
        return CheckpointTransfer(
            architecture, groups, traffic(plan), traffic(trained), bucket_bytes, frozen_layers
        )
    dtype = getattr(torch, live[next(iter(wanted))].dtype)
    return DirectTransfer(architecture, trainer, engine_layout, rank, dtype, bucket_bytes, frozen_layers)
