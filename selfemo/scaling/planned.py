"""What the planner expects of thousands of GPUs: the best layout at every size, under the example configurations.

One thing is added to the planner's step: dealing, rewards and flywheel, which every rank computes over the whole batch. It is nothing
for one node and what ends weak scaling, so its cost per sample is taken from this machine's measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfemo.config import RunConfig
from selfemo.config_file import load_config
from selfemo.planning.commands import planned_architecture
from selfemo.planning.hardware import gpu_by_name
from selfemo.planning.plan import Plan, best_layouts
from selfemo.planning.workload import Workload, workload_of
from selfemo.scaling.measured import training_label
from selfemo.scaling.rows import Row, Study

GPUS_PER_NODE = 8
GPU = "h100-80g"
SIZES = tuple(8 << doubling for doubling in range(10))
"""8 to 4,096 GPUs."""
STRONG_SEEDS = 2048
WEAK_SEEDS = 32
"""Per GPU."""


def plan_studies(config_path: Path, model: str, every_rank_us: float, sizes: Sequence[int] = SIZES) -> list[Row]:
    """Strong and weak curves of one example configuration; a size at which no layout fits has no row.

    Args:
        every_rank_us: microseconds per sample of the batch that every rank spends (parts.on_every_rank_us); 0 leaves it out.
    """
    config = load_config(config_path, [f"model.path={model}"])
    rows = []
    for gpus in sizes:
        rows += _rows(config, model, "strong", gpus, STRONG_SEEDS, every_rank_us)
        rows += _rows(config, model, "weak", gpus, WEAK_SEEDS * gpus, every_rank_us)
    return rows


def _rows(config: RunConfig, model: str, study: Study, gpus: int, seeds: int, every_rank_us: float) -> list[Row]:
    sized = replace(config, selfplay=replace(config.selfplay, seeds_per_iteration=seeds))
    workload = workload_of(sized)
    best = best_layouts(sized, planned_architecture(sized.model), workload, gpus // GPUS_PER_NODE, GPUS_PER_NODE, gpu_by_name(GPU), 1)
    return [_row(suggestion.plan, workload, model, study, seeds * 2 * max(1, sized.selfplay.turns), every_rank_us) for suggestion in best]


def _row(plan: Plan, workload: Workload, model: str, study: Study, groups: int, every_rank_us: float) -> Row:
    layout, step = plan.layout, plan.step
    tokens = workload.train_samples * workload.lengths.mean_completion
    repeated_s = workload.train_samples * every_rank_us / 1e6
    step_s = step.total + repeated_s
    moved = plan.sync.direct if plan.sync_path == "direct" else plan.sync.checkpoint
    return Row(
        kind="planned",
        study=study,
        hardware=GPU,
        algorithm="SELF-GRPO",
        model=model,
        policy_lag=0,
        mean_tokens=workload.lengths.mean_completion,
        max_tokens=workload.lengths.max_completion,
        gpus=layout.world_size,
        groups=groups,
        samples=workload.train_samples,
        generation_layout=f"TP{layout.engine_tensor} x {layout.replicas}",
        training_layout=training_label(layout),
        tokens_per_s_per_gpu=tokens / step_s / layout.world_size,
        step_s=step_s,
        generate_s=step.generate,
        logprob_s=step.logprob,
        train_s=step.train,
        sync_s=step.sync,
        other_s=step.other + repeated_s,
        sync_bytes=moved,
        planned_sync_bytes=moved,
        note=f"planned, never run; {every_rank_us:.0f} us per sample on every rank"
        if every_rank_us
        else "planned, never run; without what every rank repeats",
    )
