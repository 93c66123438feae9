"""Compiles every kernel for GPUs that are not here, and reads the resources of each binary.

Triton needs no GPU to compile: its wheel carries ptxas, cuobjdump and nvdisasm, and LLVM for AMD.
Registers, spills, the width of memory accesses and the number of special-function instructions (exp,
sqrt) are facts of the binary, so a regression in any of them fails in CI. `resources.json` beside this
file is the committed table. It says nothing about time.

Kernels compiled here must not come from an interpreting process: Triton reads TRITON_INTERPRET when
@triton.jit runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from selfemo.kernels.triton_backend import Launches
from selfemo.kernels.triton_group import NORMALISE_STD, group_advantage_kernel
from selfemo.kernels.triton_sequence import KL_K3, sequence_loss_kernel
from selfemo.kernels.triton_vocab import dlogits_kernel, vocab_stats_kernel

TABLE = Path(__file__).with_name("resources.json")
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
"""A100, H100, B200 and MI300."""

FP32 = {
    "inv_temperature",
    "clip_low",
    "clip_high",
    "dual_clip",
    "kl_beta",
    "importance_cap",
    "entropy_weight",
    "epsilon",
    "degenerate",
}
INT32 = {"row_stride", "columns", "real_columns", "vocab_start", "components", "range_component"}
INT64_POINTERS = {"targets_T", "cu_seqlens", "group_ptr"}
BYTE_POINTERS = {"live_T", "mask_T"}
MULTIPLES_OF_16 = {"row_stride", "columns"}
"""Arguments of which the launcher can promise a multiple of 16: a padded vocabulary. A real vocabulary
may have any size.
"""


@dataclass(frozen=True)
class Variant:
    """One kernel with its compile-time constants."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    warps: int


@dataclass(frozen=True)
class Resources:
    """Resources of one binary, per thread unless said otherwise."""

    target: str
    kernel: str
    registers: int
    """Registers; on AMD, vector registers."""
    spills: int
    """NVIDIA: bytes of stack and local memory. AMD: spilled vector and scalar registers."""
    shared_bytes: int
    """Shared memory, per program."""
    loads: int
    """Global load instructions in the code."""
    wide_loads: int
    """Global load instructions of 128 bits."""
    stores: int
    """Global store instructions in the code."""
    wide_stores: int
    """Global store instructions of 128 bits."""
    special: int
    """Special-function instructions: exp, log, sqrt, reciprocal."""


def variants() -> list[Variant]:
    """List every kernel as the launcher runs it on bf16 logits, with all optional parts of its code
    switched on.
    """
    launches = Launches()
    sequence, group = launches.sequence_loss, launches.group_advantages
    full = {
        "KL": KL_K3,
        "HAS_OLD": True,
        "HAS_ROLLOUT": True,
        "HAS_CAP": True,
        "HAS_DUAL": True,
        "BLOCK": sequence.block,
    }
    return [
        Variant(
            "vocab_stats",
            vocab_stats_kernel,
            {"HAS_LIVE": True, "BLOCK": launches.vocab_stats.block},
            launches.vocab_stats.warps,
        ),
        Variant("dlogits", dlogits_kernel, {"BLOCK": launches.dlogits.block}, launches.dlogits.warps),
        Variant(
            "sequence_loss_token", sequence_loss_kernel, {"SEQUENCE_RATIO": False, **full}, sequence.warps
        ),
        Variant(
            "sequence_loss_sequence", sequence_loss_kernel, {"SEQUENCE_RATIO": True, **full}, sequence.warps
        ),
        Variant(
            "group_advantage",
            group_advantage_kernel,
            {"NORMALISE": NORMALISE_STD, "BLOCK": group.block},
            group.warps,
        ),
    ]


def compile_all(targets: tuple[str, ...] = tuple(TARGETS)) -> Iterator[Resources]:
    """Compile every variant for every target; about a second each."""
    for target in targets:
        for variant in variants():
            yield measure(variant, target)


def measure(variant: Variant, target: str) -> Resources:
    """Compile one variant for one target and read the binary."""
    signature = {
        name: "constexpr" if name in variant.constants else _type_of(name)
        for name in variant.kernel.arg_names
    }
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in MULTIPLES_OF_16
    }
    constants = {(variant.kernel.arg_names.index(name),): value for name, value in variant.constants.items()}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": variant.warps})
    read = (
        _read_cubin(compiled.asm["cubin"])
        if "cubin" in compiled.asm
        else _read_amdgcn(compiled.asm["amdgcn"])
    )
    return Resources(target=target, kernel=variant.name, shared_bytes=compiled.metadata.shared, **read)


def committed() -> list[Resources]:
    """Read the table in the repository."""
    rows = json.loads(TABLE.read_text())["kernels"]
    return [Resources(**row) for row in rows]


def write_table(rows: list[Resources]) -> None:
    """Replace the committed table."""
    document = {"triton": triton.__version__, "kernels": [asdict(row) for row in rows]}
    temporary = TABLE.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(TABLE)


def differences(measured: list[Resources], expected: list[Resources]) -> list[str]:
    """Return one line per number that differs from the committed table, and per row that only one of
    the two has.
    """
    ours, theirs = ({(row.target, row.kernel): row for row in rows} for rows in (measured, expected))
    lines = [
        f"{target} {kernel}: only in the {where}"
        for where, target, kernel in _unmatched(ours.keys(), theirs.keys())
    ]
    for key in ours.keys() & theirs.keys():
        for entry in fields(Resources):
            got, want = getattr(ours[key], entry.name), getattr(theirs[key], entry.name)
            if got != want:
                lines.append(f"{key[0]} {key[1]}: {entry.name} is {got}, the committed table has {want}")
    return sorted(lines)


def _unmatched(ours: Any, theirs: Any) -> list[tuple[str, str, str]]:
    return [("measurement", *key) for key in ours - theirs] + [("table", *key) for key in theirs - ours]


def _type_of(name: str) -> str:
    if name in FP32:
        return "fp32"
    if name in INT32:
        return "i32"
    if name in INT64_POINTERS:
        return "*i64"
    if name in BYTE_POINTERS:
        return "*u8"
    return "*bf16" if name == "logits_TV" else "*fp32"


def _read_cubin(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [NVIDIA_TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        code = subprocess.run(
            [NVIDIA_TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no resource line: {usage[:200]!r}")
    registers, stack, local = map(int, found.groups())
    return {
        "registers": registers,
        "spills": stack + local + len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "loads": len(re.findall(r"\bLDG\.", code)),
        "wide_loads": len(re.findall(r"\bLDG\.[\w.]*\.128", code)),
        "stores": len(re.findall(r"\bSTG\.", code)),
        "wide_stores": len(re.findall(r"\bSTG\.[\w.]*\.128", code)),
        "special": len(re.findall(r"\bMUFU\.", code)),
    }


def _read_amdgcn(code: str) -> dict[str, int]:
    def entry(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", code)
        if found is None:
            raise RuntimeError(f"the AMD assembly has no .{name} entry")
        return int(found[1])

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    return {
        "registers": entry("vgpr_count"),
        "spills": entry("vgpr_spill_count") + entry("sgpr_spill_count"),
        "loads": count(r"\b(?:global|buffer)_load_\w+"),
        "wide_loads": count(r"\b(?:global|buffer)_load_dwordx4"),
        "stores": count(r"\b(?:global|buffer)_store_\w+"),
        "wide_stores": count(r"\b(?:global|buffer)_store_dwordx4"),
        "special": count(r"\bv_(?:exp|log|sqrt|rsq|rcp)_f(?:32|64)"),
    }
