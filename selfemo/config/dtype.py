"""Decide what `auto` means for train.dtype and rollout.dtype: bfloat16 if the machine computes in it.

It is settled as a configuration is loaded, so a run's config.yaml says what the run computed in. Imports no
torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from selfemo.config.schema import RunConfig

CPU_FLAGS = ("amx_bf16", "avx512_bf16")
"""Flags in /proc/cpuinfo of processors that multiply bf16 matrices; others emulate them, slower than fp32."""


@dataclass(frozen=True)
class Automatic:
    """The dtype that `auto` stands for, and why."""

    dtype: Literal["float32", "bfloat16"]
    reason: str


ON_GPU = Automatic("bfloat16", "a GPU computes in it")


def automatic(cpuinfo: str, has_gpu: bool) -> Automatic:
    """Decide what `auto` stands for on a machine with this /proc/cpuinfo."""
    if has_gpu:
        return ON_GPU
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = next((value.split() for name, _, value in lines if name.strip() == "flags"), [])
    found = [flag for flag in CPU_FLAGS if flag in flags]
    if found:
        return Automatic("bfloat16", f"the processor computes in it ({found[0]})")
    return Automatic("float32", f"the processor does not compute in bfloat16 (no {' or '.join(CPU_FLAGS)})")


def this_machine(environment: Mapping[str, str] = os.environ) -> Automatic:
    """Decide what `auto` stands for here."""
    cpuinfo = Path("/proc/cpuinfo")
    return automatic(
        cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else "", this_machine_has_gpu(environment)
    )


def this_machine_has_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a GPU is here. One that CUDA_VISIBLE_DEVICES hides does not count."""
    return gpus_here(environment) > 0


def gpus_here(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """Count the GPUs that processes of this machine can use, without loading a library.

    CUDA_VISIBLE_DEVICES lists them where it is set; an entry may be a part of a GPU (MIG). The list ends at
    an entry that is none, as in CUDA: SLURM writes NoDevFiles for a job without GPUs.
    """
    found, listed = len([*devices.glob("nvidia[0-9]*")]), environment.get("CUDA_VISIBLE_DEVICES")
    if not found or listed is None:
        return found
    names = (name.strip() for name in listed.split(","))
    return len([*takewhile(lambda name: _is_gpu(name, found), names)])


def _is_gpu(name: str, gpus: int) -> bool:
    if name.startswith(("GPU-", "MIG-")):
        return True
    digits = name.lstrip("0") or name[:1]  # int() refuses a number of 4,301 digits
    return digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) < gpus


def with_dtypes(config: RunConfig, found: Automatic) -> RunConfig:
    """Put `found.dtype` wherever the configuration says `auto`."""
    train, rollout = config.train, config.rollout
    if train.dtype == "auto":
        train = replace(train, dtype=found.dtype)
    if rollout.dtype == "auto":
        rollout = replace(rollout, dtype=found.dtype)
    return replace(config, train=train, rollout=rollout)
