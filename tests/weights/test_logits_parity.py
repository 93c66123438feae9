"""Compare Megatron's logits with transformers' for every family and layout, packed, within 1e-5 in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfemo.config.schema import ParallelConfig
from tests.helpers.distributed import DistributedRunner
from tests.helpers.packed_logits import TOLERANCE, logits, sequences
from tests.helpers.tiny_model import tiny_model


@pytest.mark.parametrize(
    ("family", "tied", "heads", "kv_heads"),
    [
        ("qwen3", True, 8, 4),
        pytest.param("qwen3", False, 8, 4, marks=pytest.mark.slow),
        ("qwen2", True, 8, 2),
        ("llama", False, 8, 4),
    ],
)
@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param(ParallelConfig(), marks=pytest.mark.slow),
        ParallelConfig(tensor=2),
        pytest.param(ParallelConfig(pipeline=2), marks=pytest.mark.slow),
        ParallelConfig(pipeline=2, virtual_pipeline=2),
    ],
    ids=["tp1", "tp2", "pp2", "pp2vpp2"],
)
def test_logits_equal_transformers(
    distributed: DistributedRunner,
    tmp_path: Path,
    family: str,
    tied: bool,
    heads: int,
    kv_heads: int,
    parallel: ParallelConfig,
) -> None:
    _compare(distributed, tmp_path, family, tied, heads, kv_heads, parallel)


def test_nine_heads_like_smollm2_run_on_a_pipeline(distributed: DistributedRunner, tmp_path: Path) -> None:
    _compare(distributed, tmp_path, "llama", True, 9, 3, ParallelConfig(pipeline=2))


def _compare(
    distributed: DistributedRunner,
    tmp_path: Path,
    family: str,
    tied: bool,
    heads: int,
    kv_heads: int,
    parallel: ParallelConfig,
) -> None:
    model = tiny_model(family, tied, heads=heads, kv_heads=kv_heads, layers=4)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        want = torch.cat([model(torch.tensor([ids[:-1]])).logits[0] for ids in sequences()])
    assert want.std() > 0.1  # a flat distribution would agree with anything
    for got in distributed(2, logits, str(tmp_path), parallel):
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
