"""List the GPUs a plan may be made for, with the vendor's figures; nothing here is measured.

Source: NVIDIA's data sheets of A100, H100, H200 and B200 (SXM). Rates are dense bf16 and one
direction; a network port has 400 Gbit/s per GPU as in DGX H100, 200 Gbit/s for A100.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfemo.common.errors import UserError, nearest

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One GPU and its share of the node's links."""

    name: str
    memory_bytes: int
    flops: float
    """Dense bf16 operations per second."""
    memory_rate: float
    """HBM bytes per second."""
    nvlink_rate: float
    """Bytes per second to the GPUs of the same node."""
    network_rate: float
    """Bytes per second to other nodes."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40g", 40 * GIB, 312e12, 1.555e12, 300e9, 25e9),
        Gpu("a100-80g", 80 * GIB, 312e12, 2.039e12, 300e9, 25e9),
        Gpu("h100-80g", 80 * GIB, 989e12, 3.35e12, 450e9, 50e9),
        Gpu("h200-141g", 141 * GIB, 989e12, 4.8e12, 450e9, 50e9),
        Gpu("b200-180g", 180 * GIB, 2250e12, 8.0e12, 900e9, 50e9),
    )
}


def gpu_by_name(name: str) -> Gpu:
    """Look up a GPU of the table above, in any case of letters.

    Raises:
        UserError: the name is unknown; lists those that are known.
    """
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name!r} is not known{nearest(name.lower(), GPUS)}; known: {', '.join(GPUS)}")
    return GPUS[name.lower()]
