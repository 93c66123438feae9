"""Compare the counted traffic with the reshard plan, in layouts larger than a test can run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfemo.config.layout import EngineLayout, Layout, TrainerLayout
from selfemo.models.architecture import Architecture
from selfemo.planning.sync import distinct_pair_bytes, pair_bytes, sync_bytes
from selfemo.sync.reshard import build_plan, traffic
from tests.planning.test_exact_bytes import TIED, UNTIED

LAYOUTS = [
    Layout(1, 8, tensor=2, pipeline=2, engine_tensor=8),  # more engine ranks than key-value heads
    Layout(2, 8, tensor=4, pipeline=2, virtual_pipeline=2, engine_tensor=2),
    Layout(2, 8, tensor=1, pipeline=4, engine_tensor=4),
    Layout(1, 8, tensor=4, engine_tensor=1),
    Layout(1, 8, tensor=2, context=2, engine_tensor=2),
    Layout(3, 4, tensor=2, pipeline=2, engine_tensor=4),  # engines that straddle model replicas unevenly
]


@pytest.mark.parametrize("architecture", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.label)
@pytest.mark.parametrize("frozen", [0, 1, 3], ids=lambda frozen: f"frozen-{frozen}")
def test_traffic_equals_that_of_the_reshard_plan(
    architecture: Architecture, layout: Layout, frozen: int
) -> None:
    trainer = TrainerLayout(layout.tensor, layout.pipeline, layout.virtual_pipeline, layout.weight_copies)
    engines = EngineLayout(layout.engine_tensor, layout.replicas)
    plan = build_plan(architecture, trainer, engines, frozen_layers=frozen)
    expected = traffic(plan)
    layout, only = replace(layout, frozen_layers=frozen), frozen > 0
    planned = sync_bytes(architecture, layout, "bfloat16", "bfloat16", only)
    assert planned.engine_weights == 2 * sum(
        parameter.vllm(0, engines.tensor).elements for parameter in plan.filled
    )
    assert (planned.direct, planned.checkpoint) == (2 * expected.direct, 2 * expected.checkpoint)
    assert planned.direct == 2 * expected.lower_bound
    pairs: dict[tuple[int, int], int] = {}
    for move in plan.moves:
        if move.crosses:
            key = move.source_rank, move.target_rank
            pairs[key] = pairs.get(key, 0) + 2 * move.elements
    counted: dict[tuple[int, int], int] = {}
    for copy in range(layout.weight_copies):
        counted |= pair_bytes(architecture, layout, "bfloat16", copy, only)
    assert counted == pairs
    if only:
        return
    distinct = distinct_pair_bytes(architecture, layout, "bfloat16")
    assert distinct.items() <= pairs.items()
    assert set(distinct.values()) == set(pairs.values())  # every replica equals one of those shown


def test_equal_tensor_parallel_sizes_without_a_pipeline_move_nothing() -> None:
    assert sync_bytes(TIED, Layout(1, 4, tensor=4, engine_tensor=4), "bfloat16", "bfloat16").direct == 0
