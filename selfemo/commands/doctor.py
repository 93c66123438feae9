"""Check whether this machine can run selfemo, and name the remedy for each problem (`selfemo doctor`).

The facts are read here; selfemo.commands.doctor_checks turns them into findings. Nothing heavy is
imported: installed versions come from package metadata, the CUDA that torch was built with from
torch's version file, GPUs from the driver (NVML), so the command answers in a second and serves as
a container's health check. `--imports` also imports the packages of a run, each in an interpreter
of its own.
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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import psutil
import pynvml
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfemo.commands.doctor_checks import (
    Driver,
    Finding,
    Gpu,
    check_attention,
    check_compiler,
    check_cuda,
    check_dtype,
    check_gpus,
    check_limits,
    check_network,
    check_packages,
    check_python,
    check_space,
    check_torch_companions,
    normal_name,
    wanted_extra,
)
from selfemo.config.dtype import this_machine

SCHEMA = 1
PROBLEM_STATUS = 1
"""Exit status if a finding is a problem, for the health check of the container."""
IMPORTS = (
    "import torch",
    "import triton",
    "import megatron.core",
    "from vllm import LLM",
    "import selfemo.kernels.loss",
)
GPU_IMPORTS = (
    "import transformer_engine.pytorch",
    "import flash_attn",
    "from megatron.core.extensions.transformer_engine import HAVE_TE; "
    "assert HAVE_TE, 'megatron-core lacks a name in this Transformer Engine'",
    "from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER; "
    "assert not USING_PYTORCH_OPTIMIZER, 'megatron-core did not find FusedAdam'",
)
"""The last two: megatron-core swallows a failed import, and goes on with a stand-in or another Adam."""


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    imports: Annotated[
        bool, typer.Option("--imports", help="Also import what a run needs (about a minute).")
    ] = False,
) -> None:
    """Check this machine: versions, CUDA, GPUs, memory, limits, disk, network. Exit status 1 if
    something stops a run."""
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
    """Collect every finding about this machine and installation."""
    driver, installed = read_driver(), installed_versions()
    has_gpu = bool(driver.gpus)
    links = {name: stats.isup for name, stats in psutil.net_if_stats().items()}
    findings = [check_python(sys.version_info[:3], importlib.metadata.metadata("selfemo")["Requires-Python"])]
    findings += check_packages(
        importlib.metadata.requires("selfemo") or [], installed, wanted_extra(has_gpu, installed)
    )
    findings += check_torch_companions(installed)
    findings += check_cuda(driver, torch_cuda(), installed, os.environ)
    findings += check_attention(driver, installed)
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


def check_import(statement: str) -> Finding:
    """Run one import statement in a new interpreter, since a half-imported package would disturb the next."""
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
    """Read the driver and its GPUs from NVML; an empty Driver if there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Driver()
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = str(pynvml.nvmlDeviceGetName(handle))
            capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
            gpus.append(Gpu(index, name, int(memory.free), int(memory.total), capability))
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 12080 means 12.8
        return Driver(
            str(pynvml.nvmlSystemGetDriverVersion()), (cuda // 1000, cuda % 1000 // 10), tuple(gpus)
        )
    finally:
        pynvml.nvmlShutdown()


def installed_versions() -> dict[str, str]:
    """Read the version of every installed distribution, by normalised name.

    The first on the path counts, as it does for an import.
    """
    versions: dict[str, str] = {}
    # setuptools appends packages of its own to the path once it is imported
    for found in importlib.metadata.distributions():
        if found.metadata["Name"]:
            versions.setdefault(normal_name(found.metadata["Name"]), found.version)
    return versions


def torch_cuda() -> str:
    """Read the CUDA that torch was built with, such as "12.8", from its version file.

    It is empty for a CPU build, or if torch is missing.
    """
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
    """Read the interface of the default route from the text of /proc/net/route; empty if there is none."""
    if routes is None:
        table = Path("/proc/net/route")
        routes = table.read_text() if table.exists() else ""
    rows = (line.split() for line in routes.splitlines()[1:])
    return next((row[0] for row in rows if row[1:2] == ["00000000"]), "")


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _free(path: str) -> int:
    return shutil.disk_usage(path).free if Path(path).exists() else 0


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
