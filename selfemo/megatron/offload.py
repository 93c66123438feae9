"""Move optimizer state to host memory and back, through buffers that are allocated once.

On a GPU the buffers are pinned, so that copies run at the link's rate. megatron-core's own
`offload_to_cpu` makes new pageable tensors every time. Only for an optimizer with fp32 copies of bf16
weights: in fp32 it holds the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from selfemo.megatron.device import Device

Place = tuple[int, int, str]
"""Number of the optimizer part, of the parameter in it, and the name of its tensor."""
WEIGHT = "weight"


class HostMemory:
    """Host memory for one rank's optimizer state: a buffer for each of its tensors."""

    def __init__(self, device: Device, moves_state: bool) -> None:
        """Begin with no buffers; without `moves_state` gradient buffers are freed and nothing moves."""
        self._device, self._moves_state = device, moves_state
        self._buffers: dict[Place, torch.Tensor] = {}
        self.is_used = False
        """True while the state is here."""

    @torch.no_grad()
    def offload(self, wrapped: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
        """Free gradient buffers and move every fp32 weight and moment to its buffer, once."""
        if self.is_used:
            return
        for chunk in wrapped:
            chunk.offload_grad_buffers()
        moved = list(_tensors(optimizer)) if self._moves_state else []
        for place, tensor, _ in moved:
            self._buffer(place, tensor).copy_(tensor, non_blocking=True)
        self._device.synchronize()
        for place, tensor, state in moved:
            _put(place, self._buffers[place], tensor, state)
        self._device.release_cached()
        self.is_used = True

    @torch.no_grad()
    def restore(self, wrapped: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
        """Make gradient buffers and copy back what `offload` moved; the buffers stay for the next time."""
        for chunk in wrapped:
            chunk.restore_grad_buffers()
        for place, tensor, state in list(_tensors(optimizer)) if self._moves_state else []:
            _put(place, tensor.to(self._device.torch_device, non_blocking=True, copy=True), tensor, state)
        self._device.synchronize()
        self.is_used = False

    def _buffer(self, place: Place, tensor: torch.Tensor) -> torch.Tensor:
        found = self._buffers.get(place)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            found = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._device.is_cuda)
            self._buffers[place] = found
        return found


def _tensors(optimizer: MegatronOptimizer) -> Iterator[tuple[Place, torch.Tensor, dict[str, Any]]]:
    """Yield every tensor of the optimizer's state with its place, and the state that holds it."""
    for part, chained in enumerate(getattr(optimizer, "chained_optimizers", [optimizer])):  # megatron-private
        inner = chained.optimizer
        if inner is None:  # a rank that trains nothing
            continue
        parameters = [p for group in inner.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            yield (part, index, WEIGHT), parameter, {}
            state = inner.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    yield (part, index, name), value, state


def _put(place: Place, found: torch.Tensor, tensor: torch.Tensor, state: dict[str, Any]) -> None:
    name = place[2]
    if name == WEIGHT:
        tensor.data = found
    else:
        state[name] = found
