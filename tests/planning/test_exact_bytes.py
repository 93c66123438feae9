"""Planned bytes of weights, gradients, optimizer state and sync equal what real Megatron ranks allocate and receive, to the byte."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from selfemo.config import ParallelConfig
from selfemo.planning.layout import Layout
from selfemo.planning.sync import pair_bytes, sync_bytes
from selfemo.planning.trainer_bytes import trainer_bytes
from selfemo.weights.architecture import Architecture
from selfemo.weights.plan import EngineLayout
from tests.distributed.harness import DistributedRunner
from tests.planning.megatron_bytes import allocated, transferred

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
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_allocated_bytes_are_the_planned_ones_on_every_rank(distributed: DistributedRunner, case: Case) -> None:
    measured = distributed(case.world_size, allocated, case.architecture, case.parallel, case.dtype)
    for rank, found in enumerate(measured):
        _, copy, stage = case.layout.coordinates(rank)
        planned = trainer_bytes(case.architecture, case.layout, stage, copy, case.dtype)
        assert (planned.weights, planned.gradients, planned.optimizer, planned.reference) == found, f"rank {rank}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_received_bytes_are_the_planned_ones_for_every_pair_of_ranks(distributed: DistributedRunner, case: Case) -> None:
    layout = case.layout
    engine = EngineLayout(layout.engine_tensor, layout.replicas)
    measured = distributed(case.world_size, transferred, case.architecture, case.parallel, engine, case.dtype)
    direct = {(source, target): size for target, (by_source, _) in enumerate(measured) for source, size in by_source.items()}
    planned: dict[tuple[int, int], int] = {}
    for copy in range(layout.weight_copies):
        planned |= pair_bytes(case.architecture, layout, case.dtype, copy)
    assert planned == direct
    totals = sync_bytes(case.architecture, layout, case.dtype, case.dtype)
    assert totals.direct == sum(direct.values())
    assert totals.checkpoint == sum(gathered for _, gathered in measured)
    assert totals.checkpoint_received_max == max(gathered for _, gathered in measured)
    received = [sum(by_source.values()) for by_source, _ in measured]
    assert totals.received_max == max(received)
