"""Execute the reshard plan in real processes.

Every rank has the parameters that vLLM would cut from the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from selfemo.config.layout import EngineLayout, TrainerLayout
from selfemo.config.schema import ParallelConfig
from selfemo.models.architecture import Architecture, architecture_by_name, read_architecture
from selfemo.models.parameters import model_parameters
from selfemo.sync import sync
from selfemo.sync.checksums import (
    WeightMismatch,
    box_checksum,
    compare_checksums,
    engine_checksums,
    trainer_checksums,
)
from selfemo.sync.direct import direct_tensors
from selfemo.sync.reshard import build_plan
from selfemo.weights.load import load_hf_weights
from tests.helpers.distributed import DistributedRunner, RankFailure
from tests.helpers.live_bytes import LiveBytes
from tests.helpers.megatron_rank import megatron_chunks
from tests.helpers.tiny_model import fill_local, save_tiny

BUCKET_BYTES = 4096
CPU = torch.device("cpu")


def _trainer(parallel: ParallelConfig) -> TrainerLayout:
    model_parallel = parallel.tensor * parallel.pipeline
    return TrainerLayout(
        parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, dist.get_world_size() // model_parallel
    )


def _expected(
    hf_dir: str, architecture: Architecture, engine: EngineLayout, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Cut this rank's live vLLM parameters from the file."""
    stored = {
        name: tensor.to(dtype) for name, tensor in load_file(Path(hf_dir) / "model.safetensors").items()
    }
    live: dict[str, torch.Tensor] = {}
    for parameter in TrainerLayout().parameters(architecture):
        placement = parameter.vllm(dist.get_rank() % engine.tensor, engine.tensor)
        live[parameter.vllm_name] = torch.zeros(placement.shape, dtype=dtype)
        fill_local(live[parameter.vllm_name], placement, stored)
    return live


def _transfer(
    hf_dir: str, parallel: ParallelConfig, engine: EngineLayout, dtype: torch.dtype
) -> tuple[list[str], int, int]:
    """Transfer directly.

    Returns names that differ or are missing, tensors with equal checksums, peak extra bytes.
    """
    rank = dist.get_rank()
    with megatron_chunks(Path(hf_dir), parallel) as (chunks, architecture, layout):
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.sizes.tensor)
        trainer = _trainer(parallel)
        plan = build_plan(architecture, trainer, engine, trainer.replica_of(rank))
        live = {
            name: torch.full_like(tensor, torch.nan)
            for name, tensor in _expected(hf_dir, architecture, engine, dtype).items()
        }
        with LiveBytes() as memory:
            for name, tensor in direct_tensors(chunks, plan, rank, dtype, BUCKET_BYTES):
                live[name].copy_(tensor)
        wrong = [
            name
            for name, want in _expected(hf_dir, architecture, engine, dtype).items()
            if not torch.equal(live[name], want)
        ]
        sums, unreadable = engine_checksums(live, architecture, engine, rank)
        assert not unreadable
        ours = trainer_checksums(chunks, architecture, trainer, rank, dtype)
        return (
            wrong,
            compare_checksums(ours, sums, unreadable, architecture, trainer, engine, CPU),
            memory.peak_bytes,
        )


LAYOUTS = {
    "tp2-to-tp2": (ParallelConfig(tensor=2), EngineLayout(2, 1)),
    "tp2-to-replicas": (ParallelConfig(tensor=2), EngineLayout(1, 2)),
    "pp2-to-tp2": (ParallelConfig(pipeline=2), EngineLayout(2, 1)),
    "pp2-to-replicas": (ParallelConfig(pipeline=2), EngineLayout(1, 2)),
    "pp2vpp2-to-replicas": (ParallelConfig(pipeline=2, virtual_pipeline=2), EngineLayout(1, 2)),
    "dp2-to-tp2": (ParallelConfig(), EngineLayout(2, 1)),
    "dp2-to-replicas": (ParallelConfig(), EngineLayout(1, 2)),
}
SLOW = ("tp2-to-tp2", "pp2-to-replicas", "dp2-to-replicas")
"""Layouts in which nothing moves, and one that "pp2vpp2-to-replicas" contains."""


@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("qwen2", False)])
@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param(pair, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for name, pair in LAYOUTS.items()
    ],
)
def test_direct_transfer_fills_live_parameters_bitwise(
    distributed: DistributedRunner,
    tmp_path: Path,
    family: str,
    tied: bool,
    layouts: tuple[ParallelConfig, EngineLayout],
) -> None:
    save_tiny(tmp_path, family, tied, layers=4)
    tensors = len(load_file(tmp_path / "model.safetensors"))
    widest = (
        parameter.vllm(0, layouts[1].tensor) for parameter in model_parameters(read_architecture(tmp_path))
    )
    largest_bytes = max(placement.elements for placement in widest) * 2
    for wrong, compared, peak_bytes in distributed(2, _transfer, str(tmp_path), *layouts, torch.bfloat16):
        assert wrong == []
        assert compared == tensors
        assert peak_bytes <= BUCKET_BYTES + largest_bytes


def test_direct_transfer_over_four_ranks(distributed: DistributedRunner, tmp_path: Path) -> None:
    save_tiny(tmp_path, "qwen3", True, layers=4)
    for wrong, _, _ in distributed(
        4, _transfer, str(tmp_path), ParallelConfig(tensor=2, pipeline=2), EngineLayout(4, 1), torch.float32
    ):
        assert wrong == []


def _spoil(hf_dir: str, name: str, row: int, other: int) -> None:
    """Exchange two rows of one live parameter on rank 1: all values are there, in other places."""
    rank, engine, trainer = dist.get_rank(), EngineLayout(2, 1), TrainerLayout(data=2)
    with megatron_chunks(Path(hf_dir), ParallelConfig()) as (chunks, architecture, _):
        load_hf_weights(chunks, hf_dir, architecture, 0, 1)
        live = _expected(hf_dir, architecture, engine, torch.float32)
        if rank == 1:
            live[name][[row, other]] = live[name][[other, row]]
        sums, unreadable = engine_checksums(live, architecture, engine, rank)
        ours = trainer_checksums(chunks, architecture, trainer, rank, torch.float32)
        try:
            compare_checksums(ours, sums, unreadable, architecture, trainer, engine, CPU)
        except WeightMismatch as error:
            raise RuntimeError(f"caught: {error}") from None


def test_a_swapped_row_stops_the_run_and_names_the_tensor(
    distributed: DistributedRunner, tmp_path: Path
) -> None:
    save_tiny(tmp_path, "qwen3", True)
    with pytest.raises(
        RankFailure, match=r"caught: tensor model.layers.1.mlp.up_proj.weight differs .* engine on rank 0"
    ):
        distributed(2, _spoil, str(tmp_path), "model.layers.1.mlp.gate_up_proj.weight", 50, 51)


def test_checksums_add_up_over_rectangles_and_depend_on_place() -> None:
    values = torch.randn(37, 29)
    whole = box_checksum(values, (0, 0), torch.float32)
    parts = [((0, 0), (20, 11)), ((20, 0), (17, 11)), ((0, 11), (37, 18))]
    total = sum(box_checksum(values[r : r + n, c : c + m], (r, c), torch.float32) for (r, c), (n, m) in parts)
    assert total % 2**64 == whole % 2**64
    assert box_checksum(values.flip(0), (0, 0), torch.float32) % 2**64 != whole % 2**64
    assert box_checksum(values.flip(1), (0, 0), torch.float32) % 2**64 != whole % 2**64
    assert box_checksum(values.bfloat16(), (0, 0), torch.bfloat16) == box_checksum(
        values, (0, 0), torch.bfloat16
    )


def test_planning_the_published_model_takes_no_model() -> None:
    plan = build_plan(
        architecture_by_name("qwen3-8b"),
        TrainerLayout(tensor=4, pipeline=2, data=8),
        EngineLayout(4, 16),
        [0],
    )
    assert {move.target_rank for move in plan.moves} == {0}


class _Queue:
    """A device that does queued work, of so many seconds, when it is waited for."""

    def __init__(self) -> None:
        self.now, self.queued = 0.0, 100.0

    def synchronize(self) -> None:
        self.now, self.queued = self.now + self.queued, 0.0


def test_seconds_hold_what_the_transfer_queued_and_nothing_that_was_queued_before(monkeypatch) -> None:
    device = _Queue()
    monkeypatch.setattr(sync.time, "perf_counter", lambda: device.now)

    def send() -> str:
        device.queued += 5.0
        return "report"

    assert sync.timed(device, send) == ("report", 5.0)
