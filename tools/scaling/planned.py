"""Plans thousands of GPUs: the best layout at every size, under the example configurations.

One thing is added to the planner's step: the project's own parts, as measured on this machine
(tools/scaling/parts.py). A rank works on its own samples, which are as many at every size of a weak curve.
Rank 0 decides on the flywheel's candidates for all, and all wait for it: that is counted per group of the
whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfemo.config.checks import planned_architecture
from selfemo.config.load import load_config
from selfemo.config.schema import RunConfig
from selfemo.planning.hardware import gpu_by_name
from selfemo.planning.plan import Plan, best_layouts
from selfemo.planning.workload import Workload, workload_of
from tools.scaling.measured import training_label
from tools.scaling.parts import OwnCost
from tools.scaling.rows import Row, Study

GPUS_PER_NODE = 8
GPU = "h100-80g"
SIZES = tuple(8 << doubling for doubling in range(10))
"""8 to 4,096 GPUs."""
STRONG_OPENINGS = 2048
WEAK_OPENINGS = 32
"""Openings per GPU."""


def plan_studies(config_path: Path, model: str, own: OwnCost, sizes: Sequence[int] = SIZES) -> list[Row]:
    """Plan strong and weak curves of one example configuration. A size at which no layout fits has no row.

    Args:
        own: cost of the project's own parts (parts.own_cost); OwnCost() leaves it out.
    """
    config = load_config(config_path, [f"model.path={model}"])
    rows = []
    for gpus in sizes:
        rows += _rows(config, model, "strong", gpus, STRONG_OPENINGS, own)
        rows += _rows(config, model, "weak", gpus, WEAK_OPENINGS * gpus, own)
    return rows


def _rows(config: RunConfig, model: str, study: Study, gpus: int, openings: int, own: OwnCost) -> list[Row]:
    sized = replace(config, selfplay=replace(config.selfplay, seeds_per_iteration=openings))
    workload = workload_of(sized)
    best = best_layouts(
        sized,
        planned_architecture(sized.model),
        workload,
        gpus // GPUS_PER_NODE,
        GPUS_PER_NODE,
        gpu_by_name(GPU),
        1,
    )
    return [
        _row(suggestion.plan, workload, model, study, openings * 2 * max(1, sized.selfplay.turns), own)
        for suggestion in best
    ]


def _row(plan: Plan, workload: Workload, model: str, study: Study, groups: int, own: OwnCost) -> Row:
    layout, step = plan.layout, plan.step
    tokens = workload.train_samples * workload.lengths.mean_completion
    own_s = own.seconds(workload.train_samples, groups, layout.world_size)
    step_s = step.total + own_s
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
        generate_s=step.generate + step.teacher,
        logprob_s=step.logprob,
        train_s=step.train,
        sync_s=step.sync,
        other_s=step.other + own_s,
        sync_bytes=moved,
        planned_sync_bytes=moved,
        note=(
            f"planned, never run; own parts as measured: {own.sample_us:.0f} us per sample of a rank, "
            f"{own.group_us:.2f} us per group of all"
        )
        if own != OwnCost()
        else "planned, never run; without the project's own parts",
    )
