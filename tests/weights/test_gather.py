"""Gather weights from Megatron in any layout: whole and bitwise equal on every rank, within a
bucket's memory.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfemo.config.schema import ParallelConfig
from selfemo.weights.gather import hf_tensors
from selfemo.weights.load import load_hf_weights
from tests.helpers.distributed import DistributedRunner
from tests.helpers.live_bytes import LiveBytes
from tests.helpers.megatron_rank import megatron_chunks, weight_groups
from tests.helpers.tiny_model import save_tiny

TINY_BUCKET = 5000
"""Bytes: every matrix of the tiny model spans several buckets, and every bucket holds rows of
several parameters.
"""


def _load_and_gather(hf_dir: str, parallel: ParallelConfig, bucket_bytes: int) -> list[tuple[str, bool]]:
    """Return (name, equals the file bitwise) of every gathered tensor, in order."""
    stored = load_file(Path(hf_dir) / "model.safetensors")
    with megatron_chunks(Path(hf_dir), parallel) as (chunks, architecture, layout):
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.sizes.tensor)
        assert all(parameter.isfinite().all() for chunk in chunks for parameter in chunk.parameters())
        gathered = hf_tensors(
            chunks, architecture, weight_groups(layout), bucket_bytes, include_tied_head=True
        )
        reference = {"lm_head.weight": stored["model.embed_tokens.weight"]} | stored
        return [(name, torch.equal(tensor, reference[name])) for name, tensor in gathered]


@pytest.mark.parametrize(
    ("family", "tied"),
    [("qwen3", True), ("qwen2", False), pytest.param("llama", True, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(tensor=2),
        pytest.param(ParallelConfig(pipeline=2), marks=pytest.mark.slow),
        ParallelConfig(pipeline=2, virtual_pipeline=2),
        ParallelConfig(),
    ],
    ids=["tp2", "pp2", "pp2vpp2", "dp2"],
)
def test_gathered_tensors_equal_the_file_on_both_ranks(
    distributed: DistributedRunner, tmp_path: Path, family: str, tied: bool, parallel: ParallelConfig
) -> None:
    save_tiny(tmp_path, family, tied, layers=4)
    by_rank = distributed(2, _load_and_gather, str(tmp_path), parallel, TINY_BUCKET)
    assert by_rank[0] == by_rank[1]
    names = [name for name, _ in by_rank[0]]
    assert len(names) == len(set(names))
    assert set(names) == set(load_file(tmp_path / "model.safetensors")) | {"lm_head.weight"}
    assert all(equal for _, equal in by_rank[0])


def test_gather_over_tensor_and_pipeline_ranks_together(
    distributed: DistributedRunner, tmp_path: Path
) -> None:
    save_tiny(tmp_path, "qwen3", False, layers=4)
    for gathered in distributed(
        4, _load_and_gather, str(tmp_path), ParallelConfig(tensor=2, pipeline=2), TINY_BUCKET
    ):
        assert len(gathered) == len(load_file(tmp_path / "model.safetensors"))
        assert all(equal for _, equal in gathered)


def _peak_bytes(hf_dir: str, parallel: ParallelConfig, bucket_bytes: int, keep: int) -> int:
    """Return the most bytes alive while a consumer keeps the last `keep` tensors."""
    with megatron_chunks(Path(hf_dir), parallel) as (chunks, architecture, layout):
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.sizes.tensor)
        with LiveBytes() as memory:
            stream = hf_tensors(chunks, architecture, weight_groups(layout), bucket_bytes)
            kept: deque[object] = deque(maxlen=keep)
            while (item := next(stream, None)) is not None:
                kept.append(item)
                del item
        return memory.peak_bytes


LARGEST_BYTES = 384 * 64 * 4
"""Query, key and value of one layer."""


@pytest.mark.parametrize(
    "parallel", [ParallelConfig(tensor=2), ParallelConfig(pipeline=2)], ids=["tp2", "pp2"]
)
@pytest.mark.parametrize("bucket_bytes", [TINY_BUCKET, 40_000])
def test_extra_memory_is_a_bucket_and_the_largest_parameter(
    distributed: DistributedRunner, tmp_path: Path, parallel: ParallelConfig, bucket_bytes: int
) -> None:
    save_tiny(tmp_path, "qwen3", True, layers=4)
    for peak_bytes in distributed(2, _peak_bytes, str(tmp_path), parallel, bucket_bytes, 0):
        assert LARGEST_BYTES < peak_bytes <= bucket_bytes + LARGEST_BYTES
    for peak_bytes in distributed(2, _peak_bytes, str(tmp_path), parallel, bucket_bytes, 1):
        assert peak_bytes <= bucket_bytes + 2 * LARGEST_BYTES  # the consumer's own tensors come on top
