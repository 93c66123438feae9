"""A whole world laid out: Megatron's parallel sizes, the engines', and which rank stands where.

Rank order is megatron-core's default, innermost first: tensor, context, data, pipeline. vLLM's external launcher makes engines of
consecutive ranks. Context-parallel ranks hold equal weights, so weights and sync see them as data-parallel ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from selfemo.config import RunConfig
from selfemo.weights.architecture import Architecture


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

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.gpus_per_node

    @property
    def data(self) -> int:
        """Data-parallel size."""
        return max(1, self.world_size // (self.tensor * self.pipeline * self.context))

    @property
    def weight_copies(self) -> int:
        """Ranks that hold the same shard: data-parallel times context-parallel; what the distributed optimizer shards over."""
        return self.data * self.context

    @property
    def replicas(self) -> int:
        """vLLM engines."""
        return max(1, self.world_size // self.engine_tensor)

    def rank(self, tensor: int, copy: int, stage: int) -> int:
        """The global rank with this tensor-parallel rank, among the weight copies, on this pipeline stage."""
        return tensor + self.tensor * (copy + self.weight_copies * stage)

    def stage_ranks(self, stage: int) -> range:
        """The global ranks of a pipeline stage."""
        return range(self.rank(0, 0, stage), self.rank(0, 0, stage + 1))

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(tensor, copy, stage) of a global rank."""
        rest, tensor = divmod(rank, self.tensor)
        stage, copy = divmod(rest, self.weight_copies)
        return tensor, copy, stage

    def spans_nodes(self, group_size: int, stride: int) -> bool:
        """Whether a group of `group_size` ranks, `stride` apart, has members on more than one node."""
        return (group_size - 1) * stride >= self.gpus_per_node

    @property
    def label(self) -> str:
        """Such as "TP2 PP2 DP4 +DO, engine TP1 x 16"."""
        sizes = [("TP", self.tensor), ("PP", self.pipeline), ("VPP", self.virtual_pipeline), ("CP", self.context), ("DP", self.data)]
        parts = [f"{name}{size}" for name, size in sizes if size > 1 or name in ("TP", "DP")]
        flags = [("SP", self.sequence_parallel), ("DO", self.distributed_optimizer), ("recompute", self.recompute)]
        return " ".join([*parts, *(f"+{name}" for name, on in flags if on)]) + f", engine TP{self.engine_tensor} x {self.replicas}"


def layout_of(config: RunConfig, nodes: int, gpus_per_node: int) -> Layout:
    """The layout that a configuration asks for on a cluster."""
    parallel = config.parallel
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
        engine_tensor=config.rollout.tensor_parallel,
    )


def layout_violations(layout: Layout, architecture: Architecture) -> Iterator[str]:
    """Everything in which the layout does not divide the world or the model, one sentence each."""
    model_parallel = layout.tensor * layout.pipeline * layout.context
    if layout.world_size % model_parallel:
        yield (
            f"parallel.tensor={layout.tensor} x parallel.pipeline={layout.pipeline} x parallel.context={layout.context} = {model_parallel} "
            f"does not divide the world of {layout.world_size} processes"
        )
    if layout.world_size % layout.engine_tensor:
        yield f"rollout.tensor_parallel={layout.engine_tensor} does not divide the world of {layout.world_size} processes"
    for name, size in (("attention heads", architecture.num_heads), ("key-value heads", architecture.num_kv_heads)):
        if size % layout.tensor:
            yield f"parallel.tensor={layout.tensor} does not divide the model's {size} {name}"
    if architecture.intermediate_size % layout.tensor:
        yield f"parallel.tensor={layout.tensor} does not divide the model's intermediate size {architecture.intermediate_size}"
    if architecture.num_heads % layout.engine_tensor:
        yield f"rollout.tensor_parallel={layout.engine_tensor} does not divide the model's {architecture.num_heads} attention heads"
    kv_heads, engine = architecture.num_kv_heads, layout.engine_tensor
    if max(kv_heads, engine) % min(kv_heads, engine):
        yield f"rollout.tensor_parallel={engine} is neither a divisor nor a multiple of the model's {kv_heads} key-value heads"
    if architecture.intermediate_size % layout.engine_tensor:
        yield f"rollout.tensor_parallel={engine} does not divide the model's intermediate size {architecture.intermediate_size}"
    stages = layout.pipeline * layout.virtual_pipeline
    if architecture.num_layers % stages:
        yield f"parallel.pipeline x parallel.virtual_pipeline = {stages} does not divide the model's {architecture.num_layers} layers"
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        yield f"parallel.virtual_pipeline={layout.virtual_pipeline} needs parallel.pipeline > 1"
    if layout.sequence_parallel and layout.tensor == 1:
        yield "parallel.sequence_parallel=true needs parallel.tensor > 1"
