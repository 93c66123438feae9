"""Compare planned bytes of weights, gradients, optimizer state and sync with those of real Megatron
ranks, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from selfemo.config.layout import EngineLayout, Layout
from selfemo.config.schema import ParallelConfig
from selfemo.models.architecture import Architecture
from selfemo.planning.host_bytes import node_host_bytes
from selfemo.planning.sync import pair_bytes, sync_bytes
from selfemo.planning.trainer_bytes import TrainerBytes, trainer_bytes
from tests.helpers.distributed import DistributedRunner
from tests.helpers.megatron_bytes import Measured, measure

TIED = Architecture(
    family="qwen3",
    vocab_size=131,  # a prime: every split needs padding
    hidden_size=64,
    intermediate_size=96,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=24,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    qk_norm=True,
    qkv_bias=False,
    max_position_embeddings=128,
    dtype="float32",
)
UNTIED = replace(TIED, family="qwen2", qk_norm=False, qkv_bias=True, tie_word_embeddings=False)


@dataclass(frozen=True)
class Case:
    """One layout to plan and to run."""

    world_size: int
    parallel: ParallelConfig
    engine_tensor: int
    architecture: Architecture
    dtype: str
    frozen_layers: int = 0

    @property
    def layout(self) -> Layout:
        p = self.parallel
        return Layout(
            1,
            self.world_size,
            p.tensor,
            p.pipeline,
            p.virtual_pipeline,
            sequence_parallel=p.sequence_parallel,
            distributed_optimizer=p.distributed_optimizer,
            engine_tensor=self.engine_tensor,
            frozen_layers=self.frozen_layers,
        )


SHARDED = {"distributed_optimizer": True}
CASES = {
    "tp2-tied-fp32": Case(2, ParallelConfig(tensor=2), 1, TIED, "float32"),
    "tp2-sp-untied-bf16": Case(2, ParallelConfig(tensor=2, sequence_parallel=True), 2, UNTIED, "bfloat16"),
    "pp2-tied-fp32": Case(2, ParallelConfig(pipeline=2), 2, TIED, "float32"),
    "pp2-untied-bf16": Case(2, ParallelConfig(pipeline=2), 1, UNTIED, "bfloat16"),
    "pp2-vpp2-tied-fp32": Case(2, ParallelConfig(pipeline=2, virtual_pipeline=2), 2, TIED, "float32"),
    "dp2-sharded-tied-fp32": Case(2, ParallelConfig(**SHARDED), 2, TIED, "float32"),
    "dp2-sharded-untied-bf16": Case(2, ParallelConfig(**SHARDED), 1, UNTIED, "bfloat16"),
    "tp2-dp2-sharded-tied-bf16": Case(4, ParallelConfig(tensor=2, **SHARDED), 4, TIED, "bfloat16"),
    "pp2-dp2-sharded-tied-bf16": Case(4, ParallelConfig(pipeline=2, **SHARDED), 2, TIED, "bfloat16"),
    "tp2-pp2-untied-fp32": Case(4, ParallelConfig(tensor=2, pipeline=2), 1, UNTIED, "float32"),
    "pp2-tied-fp32-frozen": Case(2, ParallelConfig(pipeline=2), 1, TIED, "float32", 2),
    "pp2-vpp2-untied-bf16-frozen": Case(
        2, ParallelConfig(pipeline=2, virtual_pipeline=2), 1, UNTIED, "bfloat16", 1
    ),
    "dp2-sharded-tied-bf16-frozen": Case(2, ParallelConfig(**SHARDED), 1, TIED, "bfloat16", 3),
    "pp2-dp2-sharded-untied-fp32-frozen": Case(
        4, ParallelConfig(pipeline=2, **SHARDED), 2, UNTIED, "float32", 2
    ),
}
"""With two of four layers frozen, the first of two stages has nothing to train."""


SLOW = ("pp2-untied-bf16", "dp2-sharded-tied-fp32", "pp2-dp2-sharded-tied-bf16", "pp2-tied-fp32-frozen")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for name, case in CASES.items()
    ],
)
def run(request: pytest.FixtureRequest, distributed: DistributedRunner) -> tuple[Case, list[Measured]]:
    """Run a case; returns it and the measured bytes by rank."""
    case: Case = request.param
    engine = EngineLayout(case.layout.engine_tensor, case.layout.replicas)
    built = (case.architecture, case.parallel, engine, case.dtype, case.frozen_layers)
    return case, distributed(case.world_size, measure, *built)


def test_allocated_bytes_are_the_planned_ones_on_every_rank(run: tuple[Case, list[Measured]]) -> None:
    case, ranks = run
    for rank, found in enumerate(ranks):
        _, copy, stage = case.layout.coordinates(rank)
        planned = trainer_bytes(case.architecture, case.layout, stage, copy, case.dtype)
        measured = TrainerBytes(found.weights, found.gradients, found.optimizer, found.reference)
        assert planned == measured, f"rank {rank}"


def test_gathered_bytes_are_the_planned_ones(run: tuple[Case, list[Measured]]) -> None:
    """Plan every rank as a node of its own. Padding at the buffer's end is planned and not gathered."""
    case, ranks = run
    layout = replace(case.layout, nodes=case.world_size, gpus_per_node=1)
    for rank, found in enumerate(ranks):
        planned = node_host_bytes(case.architecture, layout, case.dtype, False, rank).gathering
        assert 0.999 * planned <= found.gathering <= planned, f"rank {rank}"


def test_received_bytes_are_the_planned_ones_for_every_pair_of_ranks(
    run: tuple[Case, list[Measured]],
) -> None:
    case, ranks = run
    measured = {
        (source, target): size
        for target, found in enumerate(ranks)
        for source, size in found.direct_by_source.items()
    }
    planned: dict[tuple[int, int], int] = {}
    for copy in range(case.layout.weight_copies):
        planned |= pair_bytes(case.architecture, case.layout, case.dtype, copy)
    assert planned == measured
    totals = sync_bytes(case.architecture, case.layout, case.dtype, case.dtype)
    assert totals.direct == sum(measured.values())
    assert totals.received_max == max(sum(found.direct_by_source.values()) for found in ranks)
    assert totals.checkpoint == sum(found.checkpoint for found in ranks)
    assert totals.checkpoint_received_max == max(found.checkpoint for found in ranks)
