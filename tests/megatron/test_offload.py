"""Test that optimizer state moves to host buffers and back without a changed bit, in the same buffers."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from selfemo.megatron.cpu_adam import CpuFusedAdam
from selfemo.megatron.device import Device
from selfemo.megatron.offload import HostMemory

CPU = Device("cpu", "gloo", torch.device("cpu"))


def addresses(adam: CpuFusedAdam) -> list[int]:
    """List where weights and moments are."""
    parameters = adam.param_groups[0]["params"]
    tensors = [*parameters, *(t for p in parameters for t in adam.state[p].values())]
    return [tensor.data_ptr() for tensor in tensors]


def test_state_goes_to_the_same_buffers_every_time_and_comes_back_as_it_was() -> None:
    parameters = [torch.nn.Parameter(torch.randn(3, 5)), torch.nn.Parameter(torch.randn(7))]
    adam, buffers = CpuFusedAdam(parameters), HostMemory(CPU, moves_state=True)
    optimizer = SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=adam)])
    buffers.offload([], optimizer)  # before the first step there are no moments
    buffers.restore([], optimizer)
    seen = []
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        adam.step()
        before = [t.clone() for p in parameters for t in (p, *adam.state[p].values())]
        on_device = addresses(adam)
        buffers.offload([], optimizer)
        seen.append(addresses(adam))
        assert not set(on_device) & set(seen[-1])
        buffers.restore([], optimizer)
        assert not set(addresses(adam)) & set(seen[-1])
        after = [t for p in parameters for t in (p, *adam.state[p].values())]
        assert all(a.equal(b) for a, b in zip(before, after, strict=True))
    assert seen[0] == seen[1]


def test_a_rank_that_trains_nothing_has_nothing_to_move() -> None:
    buffers, optimizer = HostMemory(CPU, moves_state=True), SimpleNamespace(optimizer=None)
    buffers.offload([], optimizer)
    buffers.restore([], optimizer)
