"""Plan a run: one frozen value with everything that `selfemo plan` prints, made from a
configuration and a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfemo.config.checks import layout_violations
from selfemo.config.layout import Layout, layout_of
from selfemo.config.schema import RunConfig
from selfemo.models.architecture import Architecture
from selfemo.planning.generation import Engine
from selfemo.planning.hardware import Gpu
from selfemo.planning.host_bytes import STATE_BYTES, HostBytes, gathered_elements, host_bytes
from selfemo.planning.memory import StageMemory, plan_memory
from selfemo.planning.parameters import total_elements
from selfemo.planning.published import fitted_rates
from selfemo.planning.steptime import StepSeconds, bubble_share, step_seconds
from selfemo.planning.sync import SyncBytes, sync_bytes
from selfemo.planning.trainer_bytes import checkpoint_bytes
from selfemo.planning.workload import Workload


@dataclass(frozen=True)
class Plan:
    """Memory, traffic and time that one layout needs."""

    layout: Layout
    gpu: Gpu
    parameters: int
    """Elements of the model's checkpoint."""
    stages: tuple[StageMemory, ...]
    sync_path: str
    sync: SyncBytes
    step: StepSeconds
    bubble: float
    """Share of a training pass in which a pipeline stage waits for others."""
    tokens_per_second_per_gpu: float
    """Trained tokens (prompt and completion) per second of the whole step and per GPU, as in
    NeMo-RL's tables."""
    checkpoint_bytes: int
    checkpoint_blocks_s: float
    """Seconds that training waits while a sharded optimizer is gathered; estimated, and never measured."""
    host: HostBytes
    """Host memory of the node that needs most."""
    live_sequences: int
    """Sequences that one engine decodes together, given max_num_seqs and the KV cache."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes that any rank needs in any phase."""
        return max(stage.peak[1] for stage in self.stages)

    @property
    def fits(self) -> bool:
        """True if every rank's peak is within the GPU's memory."""
        return self.peak_bytes <= self.gpu.memory_bytes


def make_plan(
    config: RunConfig, architecture: Architecture, layout: Layout, workload: Workload, gpu: Gpu
) -> Plan:
    """Plan one layout, which must be free of violations (selfemo.config.checks)."""
    rates = fitted_rates()
    engine = Engine(
        architecture,
        layout.engine_tensor,
        config.rollout.dtype,
        config.rollout.kv_cache_bytes,
        config.rollout.max_num_seqs,
    )
    # An engine that sleeps through training loses its weights and is sent all of them.
    traffic = sync_bytes(
        architecture, layout, config.rollout.dtype, config.train.dtype, not config.rollout.sleep
    )
    path = "checkpoint" if config.sync.mode == "checkpoint" else "direct"
    step = step_seconds(architecture, layout, workload, engine, traffic, path, config.train.dtype, gpu, rates)
    return Plan(
        layout=layout,
        gpu=gpu,
        parameters=total_elements(architecture),
        stages=tuple(plan_memory(architecture, layout, config, workload, engine)),
        sync_path=path,
        sync=traffic,
        step=step,
        bubble=bubble_share(workload, layout),
        tokens_per_second_per_gpu=workload.train_tokens / step.total / layout.world_size,
        checkpoint_bytes=checkpoint_bytes(architecture, config.train.dtype, layout.frozen_layers),
        checkpoint_blocks_s=gathered_elements(architecture, layout) * STATE_BYTES / rates.gather_rate,
        host=host_bytes(architecture, layout, config.train.dtype, config.train.offload_during_rollout),
        live_sequences=engine.slots(max(call.lengths.mean_total for call in workload.calls)),
    )


@dataclass(frozen=True)
class Suggestion:
    """A layout that fits, and the reason to consider it."""

    plan: Plan
    reason: str


def best_layouts(
    config: RunConfig,
    architecture: Architecture,
    workload: Workload,
    nodes: int,
    gpus_per_node: int,
    gpu: Gpu,
    count: int = 3,
) -> list[Suggestion]:
    """Find the fastest layouts that fit, best first; empty if none fits. No two have the same
    trainer layout."""
    base = layout_of(config, nodes, gpus_per_node)
    plans: list[Plan] = []
    for layout in _candidates(base):
        if not any(layout_violations(layout, architecture)):
            plan = make_plan(config, architecture, layout, workload, gpu)
            if plan.fits:
                plans.append(plan)
    plans.sort(key=lambda plan: (plan.step.total, plan.peak_bytes))
    chosen: list[Plan] = []
    for plan in plans:
        alike = any(
            (plan.layout.tensor, plan.layout.pipeline) == (other.layout.tensor, other.layout.pipeline)
            for other in chosen
        )
        if not alike and len(chosen) < count:
            chosen.append(plan)
    return [Suggestion(plan, _reason(plan, chosen[0])) for plan in chosen]


def _candidates(base: Layout) -> list[Layout]:
    """List the layouts worth pricing.

    Model parallelism comes in powers of two, tensor parallelism and engines stay within a node, the
    optimizer is sharded.
    """
    found = []
    for tensor in _powers(base.gpus_per_node):
        for pipeline in _powers(min(8, base.world_size // tensor)):
            for engine in _powers(base.gpus_per_node):
                for recompute in (False, True):
                    found.append(
                        replace(
                            base,
                            tensor=tensor,
                            pipeline=pipeline,
                            virtual_pipeline=1,
                            context=1,
                            sequence_parallel=tensor > 1,
                            distributed_optimizer=base.world_size > tensor * pipeline,
                            recompute=recompute,
                            engine_tensor=engine,
                        )
                    )
    return found


def _reason(plan: Plan, best: Plan) -> str:
    layout = plan.layout
    parts = []
    if plan is best:
        parts.append("fastest that fits")
    else:
        slower = plan.step.total / best.step.total - 1
        freed = (best.peak_bytes - plan.peak_bytes) / 2**30
        parts.append(
            (f"{slower:.0%} slower" if slower >= 0.005 else "as fast")
            + (f", {freed:.1f} GiB lighter" if freed > 0.1 else "")
        )
    parts.append(
        "no tensor-parallel traffic"
        if layout.tensor == 1
        else f"layers split over {layout.tensor} GPUs of a node"
    )
    if layout.pipeline > 1:
        parts.append(f"stages wait {plan.bubble:.0%} of a pass")
    if layout.recompute:
        parts.append("activations recomputed to fit")
    parts.append(
        "weights move nowhere at sync"
        if plan.sync.direct == 0
        else f"{plan.sync.received_max / 1e9:.1f} GB to a rank per sync"
    )
    phase, peak = max((stage.peak for stage in plan.stages), key=lambda entry: entry[1])
    parts.append(f"{(plan.gpu.memory_bytes - peak) / 2**30:.1f} GiB spare at its fullest ({phase})")
    return "; ".join(parts)


def _powers(largest: int) -> list[int]:
    return [1 << exponent for exponent in range(max(1, largest).bit_length())]
