"""Plan the reshard: which rectangle of which Megatron shard goes to which place of which vLLM
parameter, for every rank.

A plan is made once per pair of layouts from names and sizes alone, before a model exists. It can
therefore be proven (`check_plan`: every element of every live parameter has exactly one source, and
both ends are the same element of the Hugging Face tensor) and priced (`traffic`: elements received
beside the lower bound of any plan). A rank takes its own elements first, then those of ranks in its
own data-parallel replica, so weights never cross replicas.

Rank order: Megatron's is tensor, data, pipeline (innermost first); vLLM's external launcher puts
consecutive ranks into one engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfemo.common.errors import UserError
from selfemo.config.layout import EngineLayout, TrainerLayout
from selfemo.models.architecture import Architecture
from selfemo.models.geometry import Box, Placement, Shape, overlap
from selfemo.models.parameters import Parameter


@dataclass(frozen=True)
class Move:
    """One rectangle from a Megatron shard to a vLLM parameter."""

    source_rank: int
    target_rank: int
    source: str
    """Megatron parameter, under the local layer spec's name and the global layer number."""
    target: str
    """vLLM parameter."""
    source_start: Shape
    target_start: Shape
    shape: Shape

    @property
    def elements(self) -> int:
        return Box("", self.source_start, self.target_start, self.shape).elements

    @property
    def crosses(self) -> bool:
        """True if the bytes leave their rank."""
        return self.source_rank != self.target_rank


@dataclass(frozen=True)
class ReshardPlan:
    """Moves between two layouts, in streaming order of the vLLM parameters."""

    architecture: Architecture
    trainer: TrainerLayout
    engine: EngineLayout
    targets: tuple[int, ...]
    """Ranks whose live parameters the moves fill."""
    moves: tuple[Move, ...]
    frozen_layers: int = 0
    """Lowest layers that, with the embedding, the moves leave as they are in the engine."""

    @property
    def filled(self) -> tuple[Parameter, ...]:
        """The parameters whose copies in the engine the moves fill."""
        return tuple(
            parameter
            for parameter in self.trainer.parameters(self.architecture)
            if not parameter.is_tied_copy and parameter.is_trained(self.frozen_layers)
        )


@dataclass(frozen=True)
class Traffic:
    """Elements received over the network by all targets of a plan. Multiplied by the engine's bytes
    per element they are bytes.
    """

    direct: int
    """Received through the plan's moves."""
    lower_bound: int
    """Elements that the targets need and do not hold: no plan receives less."""
    checkpoint: int
    """Received by gathering full tensors on every rank instead."""


def build_plan(
    architecture: Architecture,
    trainer: TrainerLayout,
    engine: EngineLayout,
    targets: Iterable[int] | None = None,
    frozen_layers: int = 0,
) -> ReshardPlan:
    """Build the moves that fill the engine parameters of `targets` (every rank by default).

    Args:
        frozen_layers: leave out the embedding and this many lowest layers; 0 leaves out nothing.

    Raises:
        UserError: the two layouts are of different worlds, or a size does not divide the model.
    """
    if trainer.world_size != engine.world_size:
        raise UserError(
            f"rollout.tensor_parallel={engine.tensor} x {engine.replicas} replicas is not Megatron's "
            f"world of {trainer.world_size} ranks: choose a rollout.tensor_parallel that divides the world"
        )
    if architecture.num_layers % (trainer.pipeline * trainer.virtual_pipeline):
        raise UserError(
            f"parallel.pipeline={trainer.pipeline} x "
            f"parallel.virtual_pipeline={trainer.virtual_pipeline} does not divide the model's "
            f"{architecture.num_layers} layers"
        )
    chosen = tuple(range(trainer.world_size) if targets is None else targets)
    parameters = trainer.parameters(architecture)
    shards = {
        parameter.name: [parameter.megatron(rank, trainer.tensor) for rank in range(trainer.tensor)]
        for parameter in parameters
    }
    sources: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        for tensor in parameter.tensors:
            sources.setdefault(tensor.name, []).append(parameter)
    moves: list[Move] = []
    for parameter in ReshardPlan(architecture, trainer, engine, chosen, (), frozen_layers).filled:
        live = [parameter.vllm(rank, engine.tensor) for rank in range(engine.tensor)]
        for target_rank in chosen:
            for box in live[target_rank % engine.tensor].boxes:
                candidates = sources[box.tensor]
                moves += _sources_of(
                    box, parameter.vllm_name, target_rank, candidates, shards, architecture, trainer
                )
    return ReshardPlan(architecture, trainer, engine, chosen, tuple(moves), frozen_layers)


def check_plan(plan: ReshardPlan) -> None:
    """Prove that every element of every target parameter is filled once, from a rank that holds
    that same element.

    Shares no code with `build_plan` beyond the layouts themselves.

    Raises:
        ValueError: names the first parameter and rank for which this does not hold.
    """
    parameters = {parameter.name: parameter for parameter in plan.trainer.parameters(plan.architecture)}
    live = {parameter.vllm_name: parameter for parameter in plan.filled}
    filled: dict[tuple[int, str], list[Move]] = {(rank, name): [] for rank in plan.targets for name in live}
    for move in plan.moves:
        filled[move.target_rank, move.target].append(move)
    shards: dict[tuple[str, int], Placement] = {}
    for (rank, name), moves in filled.items():
        where = f"{name} on rank {rank}"
        placement = live[name].vllm(rank % plan.engine.tensor, plan.engine.tensor)
        if sum(move.elements for move in moves) != sum(box.elements for box in placement.boxes):
            raise ValueError(f"reshard plan: {where} is not filled exactly once")
        if any(_touch(a, b) for i, a in enumerate(moves) for b in moves[:i]):
            raise ValueError(f"reshard plan: an element of {where} has two sources")
        for move in moves:
            tensor_rank, stage, _ = plan.trainer.coordinates(move.source_rank)
            source = parameters[move.source]
            if plan.trainer.stage(source, plan.architecture.num_layers) != stage:
                raise ValueError(
                    f"reshard plan: {where} is to come from rank {move.source_rank}, which does not hold "
                    f"{move.source}"
                )
            shard = shards.setdefault(
                (move.source, tensor_rank), source.megatron(tensor_rank, plan.trainer.tensor)
            )
            if _hf_origin(shard, move.source_start, move.shape) != _hf_origin(
                placement, move.target_start, move.shape
            ):
                raise ValueError(
                    f"reshard plan: {where} would receive other elements of {move.source} than its own"
                )


def traffic(plan: ReshardPlan) -> Traffic:
    """Count the elements that the plan moves between ranks, the lower bound of any plan, and the
    cost of gathering all tensors on all ranks.
    """
    trainer, num_layers = plan.trainer, plan.architecture.num_layers
    parameters, filled = trainer.parameters(plan.architecture), set(plan.filled)
    lower_bound = checkpoint = 0
    for rank in plan.targets:
        tensor_rank, stage, _ = trainer.coordinates(rank)
        own: dict[str, list[Box]] = {}
        for parameter in parameters:
            shard = parameter.megatron(tensor_rank, trainer.tensor)
            if trainer.stage(parameter, num_layers) == stage:
                for box in shard.boxes:
                    own.setdefault(box.tensor, []).append(box)
            # The stage's shard crosses the pipeline, then the other shards cross the tensor group.
            if parameter in filled:
                checkpoint += shard.elements * (
                    trainer.tensor - 1 + (trainer.stage(parameter, num_layers) != stage)
                )
        for parameter in plan.filled:
            for box in parameter.vllm(rank % plan.engine.tensor, plan.engine.tensor).boxes:
                held = [part.elements for mine in own.get(box.tensor, []) if (part := overlap(mine, box))]
                lower_bound += box.elements - min(box.elements, sum(held))
    return Traffic(sum(move.elements for move in plan.moves if move.crosses), lower_bound, checkpoint)


def buckets(plan: ReshardPlan, limit_elements: int) -> Iterator[tuple[Move, ...]]:
    """Yield the moves in order, in runs for which no rank sends or receives more than
    `limit_elements`, or one row where a row has more.
    """
    pending: list[Move] = []
    load: dict[int, int] = {}
    for whole in plan.moves:
        for move in _split_rows(whole, limit_elements):
            if move.crosses:
                if (
                    max(load.get(move.source_rank, 0), load.get(move.target_rank, 0)) + move.elements
                    > limit_elements
                    and load
                ):
                    yield tuple(pending)
                    pending, load = [], {}
                for rank in (move.source_rank, move.target_rank):
                    load[rank] = load.get(rank, 0) + move.elements
            pending.append(move)
    if pending:
        yield tuple(pending)


def _sources_of(
    box: Box,
    target: str,
    target_rank: int,
    candidates: Sequence[Parameter],
    shards: Mapping[str, list[Placement]],
    architecture: Architecture,
    trainer: TrainerLayout,
) -> list[Move]:
    """Return the moves that fill one box.

    They come from the rank's own stage and shard if it holds the elements, else from its replica's
    other ranks.
    """
    tensor_rank, stage, data = trainer.coordinates(target_rank)
    parameter = min(
        candidates, key=lambda candidate: trainer.stage(candidate, architecture.num_layers) != stage
    )
    source_stage = trainer.stage(parameter, architecture.num_layers)
    moves: list[Move] = []
    missing = box.elements
    for other in sorted(range(trainer.tensor), key=lambda rank: rank != tensor_rank):
        if missing == 0:
            break  # of a replicated tensor the first rank holds all
        for held in shards[parameter.name][other].boxes:
            part = overlap(held, box)
            if part is not None:
                source_rank = trainer.rank(other, source_stage, data)
                moves.append(
                    Move(
                        source_rank,
                        target_rank,
                        parameter.name,
                        target,
                        part.start,
                        part.local_start,
                        part.shape,
                    )
                )
                missing -= part.elements
    return moves


def _split_rows(move: Move, limit_elements: int) -> Iterator[Move]:
    row_elements = move.elements // move.shape[0]
    step = max(1, limit_elements // row_elements)
    if not move.crosses or step >= move.shape[0]:
        yield move
        return
    for first in range(0, move.shape[0], step):
        yield Move(
            move.source_rank,
            move.target_rank,
            move.source,
            move.target,
            (move.source_start[0] + first, *move.source_start[1:]),
            (move.target_start[0] + first, *move.target_start[1:]),
            (min(step, move.shape[0] - first), *move.shape[1:]),
        )


def _touch(a: Move, b: Move) -> bool:
    return all(
        s < t + m and t < s + n for s, n, t, m in zip(a.target_start, a.shape, b.target_start, b.shape)
    )


def _hf_origin(placement: Placement, start: Shape, shape: Shape) -> tuple[str, Shape] | None:
    """Return tensor and first element of a rectangle of a local tensor; None if it is not within
    one box.
    """
    for box in placement.boxes:
        if all(o <= s and s + n <= o + m for s, n, o, m in zip(start, shape, box.local_start, box.shape)):
            return box.tensor, tuple(s - o + h for s, o, h in zip(start, box.local_start, box.start))
    return None
