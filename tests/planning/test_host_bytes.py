"""Test planned host memory of checkpoints and offloading: by hand, and what a launch refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfemo.commands.preflight import check_host_memory
from selfemo.common.errors import UserError
from selfemo.config.layout import Layout
from selfemo.config.schema import ModelConfig, ParallelConfig, RunConfig, TrainConfig
from selfemo.models.architecture import architecture_by_name
from selfemo.planning.host_bytes import gathered_elements, host_bytes, node_host_bytes

QWEN = architecture_by_name("qwen3-8b")
PARAMETERS = 8_190_735_360
ONE_NODE = Layout(1, 8, tensor=4, distributed_optimizer=True)
TWO_NODES = replace(ONE_NODE, nodes=2, gpus_per_node=4)


def near(found: int, per_parameter: float) -> bool:
    """Compare with bytes per parameter; padding and copies of norms add less than a thousandth."""
    return PARAMETERS * per_parameter <= found < PARAMETERS * per_parameter * 1.001


def test_a_node_holds_what_is_gathered_and_every_ranks_own_shards() -> None:
    """Count the first copy's fp32 weight and moments, and three times one of them of the one bucket; and the
    same three of both copies' halves.
    """
    assert near(node_host_bytes(QWEN, ONE_NODE, "bfloat16", False, 0).gathering, 12 + 3 * 4 + 12)
    first, second = (node_host_bytes(QWEN, TWO_NODES, "bfloat16", False, node) for node in (0, 1))
    assert near(first.gathering, 12 + 3 * 4 + 6)
    assert near(second.gathering, 6)
    assert near(first.writing, 2 * 12 + 2)
    assert second.writing == 0
    assert host_bytes(QWEN, TWO_NODES, "bfloat16", False) == first
    assert near(12 * gathered_elements(QWEN, ONE_NODE) * 4, 12)


def test_a_pipeline_spreads_it_over_nodes() -> None:
    layout = Layout(2, 8, tensor=4, pipeline=2, distributed_optimizer=True)
    assert 0.5 <= host_bytes(QWEN, layout, "bfloat16", False).gathering / (36 * PARAMETERS) < 0.55


def test_a_whole_optimizer_is_copied_once() -> None:
    layout = Layout(1, 8, tensor=4)
    assert near(host_bytes(QWEN, layout, "bfloat16", False).total, 14)
    assert near(host_bytes(QWEN, layout, "float32", False).total, 12)
    assert host_bytes(QWEN, layout, "bfloat16", False).gathering == 0 == gathered_elements(QWEN, layout)


def test_offloaded_state_stays_pinned_beside_a_checkpoint() -> None:
    """Count 12 bytes per parameter, every block up to a power of two."""
    without, offloaded = (host_bytes(QWEN, ONE_NODE, "bfloat16", offloads) for offloads in (False, True))
    assert offloaded.total - without.total == offloaded.offloaded
    assert 12 <= offloaded.offloaded / PARAMETERS < 24


def test_a_launch_is_refused_where_its_checkpoints_do_not_fit() -> None:
    """Ask for a model whose optimizer state no machine of today can gather, and for a small one."""
    sharded = ParallelConfig(tensor=4, distributed_optimizer=True)
    config = RunConfig(parallel=sharded, train=TrainConfig(dtype="bfloat16"))
    check_host_memory(config, 1, 8)
    large = ModelConfig(hidden_size=8192, intermediate_size=32_768, num_layers=96, num_heads=64)
    with pytest.raises(UserError, match=r"node 0: a checkpoint takes \d{4}\.\d GB of host memory here"):
        check_host_memory(replace(config, model=large), 1, 8)
