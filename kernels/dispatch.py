"""Chooses between the two implementations of `backend.Backend`."""

from __future__ import annotations

import functools
import logging

import torch

from selfemo.kernels.backend import Backend, Impl


def choose(impl: Impl, device: torch.device) -> Backend:
    """Return the backend for `impl` on `device`: "auto" takes Triton on a GPU (CUDA or HIP) and torch
    elsewhere.

    Raises:
        ValueError: an unknown `impl`, or "triton" on a device that Triton cannot run on.
    """
    if impl not in ("auto", "triton", "torch"):
        raise ValueError(f"impl is {impl!r}: expected 'auto', 'triton' or 'torch'")
    return load_backend(impl, device.type)


@functools.cache
def load_backend(impl: Impl, device_type: str) -> Backend:
    """Load a backend once, and log it once, per (impl, device type). Triton is imported only here, when
    it is chosen.
    """
    use_triton = impl == "triton" or (impl == "auto" and device_type == "cuda")
    logging.getLogger(__name__).info(
        "kernels: %s on %s tensors (impl=%s)", "triton" if use_triton else "torch", device_type, impl
    )
    if not use_triton:
        from selfemo.kernels.torch_backend import TorchBackend

        return TorchBackend()
    from selfemo.kernels.triton_backend import TritonBackend, can_run

    if not can_run(device_type):
        raise ValueError(
            f"impl='triton' cannot run on {device_type} tensors: move them to a GPU, or use impl='auto'"
        )
    return TritonBackend()
