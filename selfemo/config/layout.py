"""Lay out a whole world: Megatron's parallel sizes, the engines' sizes, and the place of every rank in both.

Rank order is megatron-core's default, innermost first: tensor, context, data, pipeline. vLLM's
external launcher makes engines of consecutive ranks. Context-parallel ranks hold equal weights, so
weights and sync see them as data-parallel ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfemo.config.schema import ParallelConfig, RunConfig
from selfemo.models.architecture import Architecture
from selfemo.models.parameters import EMBEDDING, Parameter, model_parameters


@dataclass(frozen=True)
class Layout:
    """Sizes of every kind of parallelism over a cluster."""

    nodes: int = 1
    gpus_per_node: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    context: int = 1
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    recompute: bool = False
    engine_tensor: int = 1
    """Ranks per vLLM engine."""
    frozen_layers: int = 0
    """Lowest layers that are not trained (train.frozen_layers); it decides what the ranks of a stage hold."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def data(self) -> int:
        return max(1, self.world_size // (self.tensor * self.pipeline * self.context))

    @property
    def weight_copies(self) -> int:
        """Number of ranks that hold the same shard: data-parallel times context-parallel.

        The distributed optimizer shards over them.
        """
        return self.data * self.context

    @property
    def replicas(self) -> int:
        """Number of vLLM engines."""
        return max(1, self.world_size // self.engine_tensor)

    @property
    def trainer(self) -> TrainerLayout:
        """Megatron's part of it, as far as it decides where weights are."""
        return TrainerLayout(self.tensor, self.pipeline, self.virtual_pipeline, self.weight_copies)

    @property
    def engines(self) -> EngineLayout:
        """vLLM's part of it."""
        return EngineLayout(self.engine_tensor, self.replicas)

    def rank(self, tensor: int, copy: int, stage: int) -> int:
        """Return the global rank with this tensor-parallel rank, this place among the weight
        copies, and this pipeline stage."""
        return self.trainer.rank(tensor, stage, copy)

    def stage_ranks(self, stage: int) -> range:
        """Return the global ranks of a pipeline stage."""
        return range(self.rank(0, 0, stage), self.rank(0, 0, stage + 1))

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Return (tensor, copy, stage) of a global rank."""
        tensor, stage, copy = self.trainer.coordinates(rank)
        return tensor, copy, stage

    def spans_nodes(self, group_size: int, stride: int) -> bool:
        """Return True if a group of `group_size` ranks, `stride` apart, has members on more than one node."""
        return (group_size - 1) * stride >= self.gpus_per_node

    @property
    def label(self) -> str:
        """A short name such as "TP2 PP2 DP4 +DO, engine TP1 x 16"."""
        sizes = [
            ("TP", self.tensor),
            ("PP", self.pipeline),
            ("VPP", self.virtual_pipeline),
            ("CP", self.context),
            ("DP", self.data),
        ]
        parts = [f"{name}{size}" for name, size in sizes if size > 1 or name in ("TP", "DP")]
        flags = [
            ("SP", self.sequence_parallel),
            ("DO", self.distributed_optimizer),
            ("recompute", self.recompute),
        ]
        return (
            " ".join([*parts, *(f"+{name}" for name, on in flags if on)])
            + f", engine TP{self.engine_tensor} x {self.replicas}"
        )


def layout_of(config: RunConfig, nodes: int, gpus_per_node: int) -> Layout:
    """Return the layout that a configuration asks for on a cluster."""
    return replace(
        parallel_layout(config.parallel, nodes, gpus_per_node),
        engine_tensor=config.rollout.tensor_parallel,
        frozen_layers=config.train.frozen_layers,
    )


def parallel_layout(parallel: ParallelConfig, nodes: int, gpus_per_node: int) -> Layout:
    """Return the layout of a trainer on a cluster, with engines of one rank and nothing frozen."""
    return Layout(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
        context=parallel.context,
        sequence_parallel=parallel.sequence_parallel,
        distributed_optimizer=parallel.distributed_optimizer,
        recompute=parallel.recompute,
    )


@dataclass(frozen=True)
class TrainerLayout:
    """Sizes of Megatron's parallelism. Context-parallel ranks hold equal weights and count as
    data-parallel ones."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    data: int = 1

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    def rank(self, tensor: int, pipeline: int, data: int) -> int:
        """Return the global rank at these coordinates."""
        return tensor + self.tensor * (data + self.data * pipeline)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Return (tensor, pipeline, data) of a global rank."""
        rest, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(rest, self.data)
        return tensor, pipeline, data

    def replica_of(self, rank: int) -> tuple[int, ...]:
        """Return the global ranks that hold the whole model together with this one."""
        data = self.coordinates(rank)[2]
        return tuple(sorted(self.rank(t, p, data) for t in range(self.tensor) for p in range(self.pipeline)))

    def parameters(self, architecture: Architecture) -> tuple[Parameter, ...]:
        """List the parameters that this layout allocates.

        A tied model has an output layer of its own only if a pipeline separates it from the
        embedding.
        """
        return tuple(
            parameter
            for parameter in model_parameters(architecture)
            if self.pipeline > 1 or not parameter.is_tied_copy
        )

    def stage(self, parameter: Parameter, num_layers: int) -> int:
        """Return the pipeline stage that holds a parameter. Virtual chunks are dealt to the stages
        in turn."""
        if parameter.layer is not None:
            return parameter.layer // (num_layers // (self.pipeline * self.virtual_pipeline)) % self.pipeline
        return (
            0 if parameter.tensors[0].name == EMBEDDING and not parameter.is_tied_copy else self.pipeline - 1
        )


@dataclass(frozen=True)
class EngineLayout:
    """Sizes of vLLM: `replicas` engines of `tensor` ranks each."""

    tensor: int = 1
    replicas: int = 1

    @property
    def world_size(self) -> int:
        return self.tensor * self.replicas
