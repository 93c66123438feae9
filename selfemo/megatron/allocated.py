"""Count the bytes of memory that a rank's trainer holds, for comparison with the planned bytes.

A tensor counts with the whole allocation behind it, and each allocation counts once: Megatron lays
many parameters into one buffer, padding included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from megatron.core.optimizer.optimizer import MegatronOptimizer


def allocated_bytes(
    parameters: Sequence[torch.nn.Parameter], optimizer: MegatronOptimizer, reference: Sequence[torch.Tensor]
) -> dict[str, int]:
    """Return {"weights", "gradients", "optimizer", "reference"}: bytes on this rank.

    The optimizer has state only after its first step.
    """
    # megatron-private
    inner = [part.optimizer for part in getattr(optimizer, "chained_optimizers", [optimizer])]
    state = [
        v for o in inner for entry in o.state.values() for v in entry.values() if isinstance(v, torch.Tensor)
    ]
    main = [p for o in inner for group in o.param_groups for p in group["params"]]
    weights = _storages(parameters)
    return {
        "weights": sum(weights.values()),
        # megatron-private
        "gradients": sum(_storages(p.main_grad for p in parameters if p.requires_grad).values()),
        "optimizer": sum(size for key, size in _storages([*state, *main]).items() if key not in weights),
        "reference": sum(_storages(reference).values()),
    }


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Return {address: bytes} of the distinct allocations behind some tensors."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
