"""Test that a step counts once in every parameter group, whether Adam counts it in empty ones or not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from selfemo.megatron.cpu_adam import CpuFusedAdam
from selfemo.megatron.optimizer import counting_empty_groups


class PassesEmptyGroups(CpuFusedAdam):
    """Counts as Transformer Engine's Adam did before 2.20."""

    def step(self, closure=None):
        counts = [group.get("step", 0) for group in self.param_groups]
        super().step(closure)
        for group, before in zip(self.param_groups, counts, strict=True):
            if not group["params"]:
                group["step"] = before


@pytest.mark.parametrize("adam", [CpuFusedAdam, PassesEmptyGroups])
def test_a_step_counts_once_in_empty_groups(adam: type[CpuFusedAdam]) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    inner = adam([{"params": [parameter]}, {"params": []}])
    for taken in (1, 2, 3):
        with counting_empty_groups(SimpleNamespace(param_groups=inner.param_groups)):
            inner.step()
        assert [group["step"] for group in inner.param_groups] == [taken, taken]


def test_a_step_counts_once_on_a_rank_that_trains_nothing() -> None:
    """Its optimizer is a stub, whose step does nothing."""
    groups = [{"params": []}, {"params": []}]
    for taken in (1, 2):
        with counting_empty_groups(SimpleNamespace(param_groups=groups)):
            pass
        assert [group["step"] for group in groups] == [taken, taken]
