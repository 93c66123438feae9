"""The launch scripts: shell and Python at once, and the torchrun call they make of their environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo.weights.architecture import architecture_by_name, hf_config

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("4b", "8b")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH on which torchrun and scontrol only tell how they were called."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in {"torchrun": 'printf "%s\\n" "$@"', "scontrol": "printf 'node7\\nnode8\\n'"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "NNODES", "NODE_RANK", "MASTER"))}
    return {**clean, "PATH": f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def script(model: str) -> str:
    return f"examples/train_qwen3_{model}.sh"


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def model_dir(tmp_path: Path, model: str) -> str:
    """A directory that describes the real model and holds no weights: enough for a dry run."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(hf_config(architecture_by_name(f"qwen3-{model}"))))
    return str(tmp_path / "model")


@pytest.mark.parametrize("model", MODELS)
def test_bash_calls_torchrun_with_the_nodes_of_the_environment(environment, model):
    told = {**environment, "NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "head", "GPUS_PER_NODE": "8"}
    arguments = run(["bash", script(model), "seed=5"], told).stdout.splitlines()
    assert arguments[arguments.index("--nnodes") + 1] == "4"
    assert arguments[arguments.index("--node-rank") + 1] == "2"
    assert arguments[arguments.index("--nproc-per-node") + 1] == "8"
    assert arguments[arguments.index("--rdzv-endpoint") + 1] == "head:29500"
    assert arguments[-2:] == [script(model), "seed=5"]


def test_bash_reads_slurm(environment):
    told = {**environment, "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "42"}
    arguments = run(["bash", script("8b")], told).stdout.splitlines()
    assert arguments[arguments.index("--nnodes") + 1] == "2"
    assert arguments[arguments.index("--node-rank") + 1] == "1"
    assert arguments[arguments.index("--rdzv-id") + 1] == "42"
    assert arguments[arguments.index("--rdzv-endpoint") + 1] == "node7:29500"


@pytest.mark.parametrize("model", MODELS)
def test_the_same_file_is_a_python_program(environment, tmp_path, model):
    """What torchrun does with the file, on one process that only checks the configuration."""
    told = {**environment, "MODEL_DIR": model_dir(tmp_path, model)}
    arguments = ["--dry-run", "--processes-per-node", "8", f"output_dir={tmp_path / 'run'}", "corpus.name=everyday"]
    result = run([sys.executable, script(model), *arguments], told)
    assert result.returncode == 0, result.stderr
    assert "8 processes" in result.stdout


@pytest.mark.parametrize("model", MODELS)
def test_a_dry_run_prints_the_plan(environment, tmp_path, model):
    told = {**environment, "MODEL_DIR": model_dir(tmp_path, model), "NNODES": "2"}
    result = run(["bash", script(model), "--dry-run", f"output_dir={tmp_path / 'run'}", "corpus.name=everyday"], told)
    assert result.returncode == 0, result.stderr
    assert "16 x h100-80g" in result.stdout
    assert "fits" in result.stdout


@pytest.mark.parametrize("model", MODELS)
def test_a_dry_run_refuses_what_is_wrong(environment, tmp_path, model):
    told = {**environment, "MODEL_DIR": model_dir(tmp_path, model)}
    result = run(["bash", script(model), "--dry-run", "parallel.tensor=5", "corpus.name=everyday", f"output_dir={tmp_path / 'run'}"], told)
    assert result.returncode == 2
    assert "parallel.tensor=5" in result.stderr
    assert "Traceback" not in result.stderr


SHELL_ONLY = [*ROOT.glob("examples/*_cpu.sh"), *ROOT.glob("examples/launch.sh"), *ROOT.glob("examples/*.sbatch")]


@pytest.mark.parametrize("path", SHELL_ONLY, ids=lambda path: path.name)
def test_every_script_that_is_shell_alone_parses(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
