"""Test what a GPU adds to this process's state: gloo groups beside NCCL's, and a generator of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from selfemo.config.layout import Layout
from selfemo.megatron.device import select_device
from selfemo.megatron.parallel import enter_layout, leave_parallel
from selfemo.megatron.rng import collect_rng, restore_rng, save_rng


def _groups_after_leaving() -> tuple[int, int]:
    """Enter and leave, with the groups that a GPU has; return the groups before and after."""
    device = replace(select_device(), kind="cuda")
    before = len(dist.distributed_c10d._world.pg_map)
    for _ in range(2):
        enter_layout(Layout(1, 2, distributed_optimizer=True), device, seed=1)
    leave_parallel()
    return before, len(dist.distributed_c10d._world.pg_map)


def test_a_layout_with_gloo_groups_beside_others_is_left_whole(distributed) -> None:
    for before, after in distributed(2, _groups_after_leaving, timeout_s=240):
        assert after == before


def test_generators_of_a_cpu_run_are_restored_on_a_gpu(tmp_path: Path) -> None:
    save_rng(tmp_path / "rng.safetensors", collect_rng(torch.device("cpu")))
    drawn = torch.rand(3)
    restore_rng(tmp_path / "rng.safetensors", torch.device("cuda"))
    assert torch.equal(torch.rand(3), drawn)
