"""Compute the memory of every rank in every phase, by kind.

Weights, gradients, optimizer state, KV cache and buckets are the sizes that the code allocates.
Activations and logits are sums over the tensors that a layer's backward pass needs, with
FlashAttention and without dropout. Workspace is an allowance.

Phases differ in what is allocated at the same time. During training the engine sleeps. In "wake-up"
the engine allocates weights and cache while the trainer keeps all of its own. In "sync" the
transfer adds its buckets. A checkpoint follows a sync, so the engine is awake. Where a round begins
after the first (selfplay.rounds), the new reference is copied beside the old one.

Source of the activation terms: Korthikanti et al. 2022, section 4, redone for RMSNorm,
grouped-query attention and SwiGLU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from selfemo.config.layout import Layout
from selfemo.config.schema import RunConfig, TrainConfig
from selfemo.models.architecture import DTYPE_BYTES, Architecture
from selfemo.planning.generation import Engine
from selfemo.planning.hardware import GIB
from selfemo.planning.parameters import trained_layers_on, trains_head
from selfemo.planning.steptime import busiest_head_tokens, passes, supervised_pass
from selfemo.planning.sync import engine_elements
from selfemo.planning.trainer_bytes import trainer_bytes
from selfemo.planning.workload import Workload

CONTEXT_BYTES = 2 * GIB
"""Allowance for the CUDA context, NCCL and cuBLAS workspaces."""
ENGINE_WORKSPACE_BYTES = 3 * GIB
"""Allowance for vLLM's activations and CUDA graphs while it is awake."""
FUSED_CHUNK_TOKENS = 512
"""Tokens whose logits exist together if the output layer is fused. Repeats selfemo.kernels'
default, whose import needs torch."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at one time, by kind."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    reference: int = 0
    frozen_cache: int = 0
    activations: int = 0
    logits: int = 0
    engine_weights: int = 0
    kv_cache: int = 0
    engine_tables: int = 0
    buckets: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class StageMemory:
    """Memory of the ranks of one pipeline stage, by phase.

    Ranks of a stage differ only by the rounding of optimizer shards; the figures are those of the
    largest.
    """

    stage: int
    ranks: range
    phases: dict[str, Memory]

    @property
    def peak(self) -> tuple[str, int]:
        """The phase that needs most memory, and its bytes."""
        phase = max(self.phases, key=lambda name: self.phases[name].total)
        return phase, self.phases[phase].total


def plan_memory(
    architecture: Architecture, layout: Layout, config: RunConfig, workload: Workload, engine: Engine
) -> list[StageMemory]:
    """Compute the memory of every pipeline stage in every phase."""
    return [
        _stage_memory(architecture, layout, config, workload, engine, stage)
        for stage in range(layout.pipeline)
    ]


def rank_memory(
    architecture: Architecture,
    layout: Layout,
    config: RunConfig,
    workload: Workload,
    engine: Engine,
    rank: int,
) -> dict[str, Memory]:
    """Compute the memory of one rank in every phase."""
    _, copy, stage = layout.coordinates(rank)
    return _phases(architecture, layout, config, workload, engine, stage, copy)


def activation_bytes(
    architecture: Architecture, layout: Layout, tokens: float, stage: int, microbatches: int, dtype: str
) -> int:
    """Bytes of activations that a stage keeps when most micro-batches are in flight.

    Args:
        tokens: tokens per micro-batch.
    """
    trained_layers = trained_layers_on(architecture, layout, stage)  # frozen ones keep nothing
    chunk_layers = trained_layers / layout.virtual_pipeline
    # One-forward-one-backward keeps a micro-batch per later stage in flight; interleaving adds a share
    # of a round of chunks.
    in_flight_chunks = layout.virtual_pipeline * (layout.pipeline - stage)
    if layout.virtual_pipeline > 1:
        in_flight_chunks = (
            (layout.virtual_pipeline - 1) * layout.pipeline + 1 + 2 * (layout.pipeline - stage - 1)
        )
    in_flight_layers = chunk_layers * min(in_flight_chunks, microbatches * layout.virtual_pipeline)
    in_flight_layers = max(1.0, in_flight_layers)  # one at least, while it is computed
    whole, kept = _layer_bytes(architecture, layout, dtype)
    tokens = tokens / layout.context
    if layout.recompute:
        return int(tokens * (in_flight_layers * kept + whole))
    return int(tokens * in_flight_layers * whole)


def _layer_bytes(architecture: Architecture, layout: Layout, dtype: str) -> tuple[float, float]:
    """Bytes per token that one layer's backward pass needs, and those of its input alone, which
    recomputation keeps."""
    width, split = DTYPE_BYTES[dtype], layout.tensor
    # without sequence parallelism, every rank holds norms and residuals whole
    rows = split if layout.sequence_parallel else 1
    hidden, query, kv = architecture.hidden_size, architecture.query_size, architecture.kv_size
    residual = 4 * hidden / rows  # inputs and outputs of two norms; the projections read the outputs
    attention = (
        2 * query + 2 * kv
    ) / split  # q, k, v and the attention's output, which the next projection reads
    head_norms = (query + kv) / split if architecture.qk_norm else 0.0
    # gate and up before the activation, their product after it
    mlp = 3 * architecture.intermediate_size / split
    statistics = 4 * architecture.num_heads / split / width  # FlashAttention's log-sum-exp is fp32
    return width * (residual + attention + head_norms + mlp + statistics), width * hidden / rows


def logits_bytes(
    architecture: Architecture, layout: Layout, completion_tokens: float, train: TrainConfig
) -> int:
    """Bytes of one micro-batch's logits over its completion tokens, and of autograd's gradient of
    a trained output weight.

    The gradient of the logits overwrites them. With train.fuse_output_layer only one chunk of
    logits exists, and the weight's gradient accumulates in Megatron's buffer.
    """
    column_bytes = architecture.vocab_size / layout.tensor * DTYPE_BYTES[train.dtype]
    logits = int(completion_tokens * column_bytes)
    if train.fuses_output_layer(logits):
        return int(min(completion_tokens, FUSED_CHUNK_TOKENS) * column_bytes)
    return logits + int(architecture.hidden_size * column_bytes) * trains_head(architecture, layout)


def _stage_memory(
    architecture: Architecture,
    layout: Layout,
    config: RunConfig,
    workload: Workload,
    engine: Engine,
    stage: int,
) -> StageMemory:
    # Shards of the distributed optimizer differ by padding; the first rank's is never the smallest.
    return StageMemory(
        stage, layout.stage_ranks(stage), _phases(architecture, layout, config, workload, engine, stage, 0)
    )


def _phases(
    architecture: Architecture,
    layout: Layout,
    config: RunConfig,
    workload: Workload,
    engine: Engine,
    stage: int,
    copy: int,
) -> dict[str, Memory]:
    dtype = config.train.dtype
    held = trainer_bytes(architecture, layout, stage, copy, dtype)
    trainer = Memory(
        held.weights,
        held.gradients,
        held.optimizer,
        held.reference,
        config.train.frozen_cache_bytes,
        workspace=CONTEXT_BYTES,
    )
    engine_weights = engine_elements(architecture, layout.engine_tensor) * DTYPE_BYTES[engine.dtype]
    awake = {
        "engine_weights": engine_weights,
        "kv_cache": engine.kv_cache_bytes,
        "engine_tables": engine.table_bytes,
        "workspace": CONTEXT_BYTES + ENGINE_WORKSPACE_BYTES,
    }
    batch, supervised = passes(workload, layout)[0], supervised_pass(workload, layout)
    microbatch_tokens = workload.microbatch_tokens or batch.tokens
    head_tokens = max(
        (microbatch_tokens * p.head_tokens / p.tokens for p in (batch, supervised) if p.tokens), default=0.0
    )
    completion_tokens = busiest_head_tokens(layout, microbatch_tokens, head_tokens)
    logits = logits_bytes(architecture, layout, completion_tokens, config.train)
    train = replace(
        trainer,
        activations=activation_bytes(
            architecture,
            layout,
            microbatch_tokens,
            stage,
            batch.microbatches + supervised.microbatches,
            dtype,
        ),
        logits=logits if stage == layout.pipeline - 1 else 0,
        **({} if config.rollout.sleep else awake),
    )
    offloaded = replace(trainer, gradients=0, optimizer=0) if config.train.offload_during_rollout else trainer
    phases = {
        "train": train,
        "wake-up": replace(offloaded, **awake),
        "sync": replace(offloaded, buckets=config.sync.bucket_bytes, **awake),
        "rollout": replace(offloaded, **awake),
        "checkpoint": replace(trainer, **awake),  # writing moves offloaded state back to the GPU
    }
    if config.selfplay.rounds > 1:
        phases["round"] = replace(offloaded, reference=2 * held.reference, **awake)
    return phases
