"""Test the launch scripts, which are shell and Python at once, and the torchrun call they derive
from the environment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo.config.schema import ModelConfig
from selfemo.models.architecture import architecture_by_name, hf_config
from selfemo.tokens.init_model import init_model

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("8b", pytest.param("4b", marks=pytest.mark.slow))
TOLD = (
    'echo "store not shared: $TORCH_DISABLE_SHARE_RDZV_TCP_STORE, connections: $CUDA_DEVICE_MAX_CONNECTIONS"'
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Make a PATH on which torchrun and scontrol only print their arguments."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in {
        "torchrun": f'{TOLD}; printf "%s\\n" "$@"',
        "scontrol": "printf 'node7\\nnode8\\n'",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM", "NNODES", "NODE_RANK", "MASTER", "GPUS_PER_NODE", "LOCAL_ADDR"))
    }
    return {
        **clean,
        "PATH": f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def script(model: str) -> str:
    return f"examples/train_qwen3_{model}.sh"


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
    )


def model_dir(tmp_path: Path, model: str) -> str:
    """Write a directory that describes the real model and holds no weights: enough for a dry run."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(hf_config(architecture_by_name(f"qwen3-{model}")))
    )
    return str(tmp_path / "model")


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a small model with weights and tokenizer, as a launch needs it.

    Its sizes divide in every layout tested.
    """
    shape = ModelConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,  # which vLLM's CPU attention takes
    )
    directory = tmp_path_factory.mktemp("whole") / "model"
    return str(
        init_model(
            directory, dataclasses.replace(shape, max_length=4096), ["a few words for a tokenizer"], seed=1
        )
    )


def launched(
    environment: dict[str, str],
    tmp_path: Path,
    whole_model: str,
    model: str,
    settings: dict[str, str],
    *overrides: str,
) -> list[str]:
    """Run the script; returns the arguments with which it calls torchrun."""
    told = {**environment, **settings, "MODEL_DIR": whole_model}
    result = run(
        ["bash", script(model), f"output_dir={tmp_path / 'run'}", "corpus.name=everyday", *overrides], told
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "processes = tensor" in lines[0]  # the configuration is checked before the launch
    assert lines[1] == "store not shared: 1, connections: 1"
    return lines[lines.index("--nnodes") :]


@pytest.mark.parametrize("model", MODELS)
def test_bash_calls_torchrun_with_the_nodes_of_the_environment(environment, tmp_path, whole_model, model):
    nodes = {
        "NNODES": "4",
        "NODE_RANK": "2",
        "MASTER_ADDR": "head",
        "GPUS_PER_NODE": "8",
        "LOCAL_ADDR": "10.0.0.7",
    }
    arguments = launched(environment, tmp_path, whole_model, model, nodes, "seed=5")
    assert arguments[arguments.index("--nnodes") + 1] == "4"
    assert arguments[arguments.index("--node-rank") + 1] == "2"
    assert arguments[arguments.index("--nproc-per-node") + 1] == "8"
    # Node 0 hosts the rendezvous.
    assert arguments[arguments.index("--rdzv-conf") + 1].startswith("is_host=0,")
    assert arguments[arguments.index("--rdzv-endpoint") + 1] == "head:29500"
    assert arguments[arguments.index("--local-addr") + 1] == "10.0.0.7"
    assert arguments[arguments.index(script(model)) + 1 :] == [
        f"output_dir={tmp_path / 'run'}",
        "corpus.name=everyday",
        "seed=5",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("gpus", ["4", "h100:4"])
def test_bash_reads_slurm(environment, tmp_path, whole_model, gpus):
    slurm = {
        "SLURM_NNODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "42",
        "SLURM_GPUS_PER_NODE": gpus,
    }
    arguments = launched(environment, tmp_path, whole_model, "8b", slurm)
    assert arguments[arguments.index("--nnodes") + 1] == "2"
    assert arguments[arguments.index("--nproc-per-node") + 1] == "4"
    assert arguments[arguments.index("--node-rank") + 1] == "1"
    assert arguments[arguments.index("--rdzv-id") + 1] == "42"
    assert arguments[arguments.index("--rdzv-endpoint") + 1] == "node7:29500"


@pytest.mark.parametrize("model", MODELS)
def test_the_same_file_is_a_python_program(environment, tmp_path, model):
    """Run the file as torchrun does, on one process that only checks the configuration."""
    told = {**environment, "MODEL_DIR": model_dir(tmp_path, model)}
    arguments = [
        "--dry-run",
        "--processes-per-node",
        "8",
        f"output_dir={tmp_path / 'run'}",
        "corpus.name=everyday",
    ]
    result = run([sys.executable, script(model), *arguments], told)
    assert result.returncode == 0, result.stderr
    assert "8 processes" in result.stdout


@pytest.mark.parametrize("place", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["first", "last"])
@pytest.mark.parametrize("model", MODELS)
def test_a_dry_run_prints_the_plan(environment, tmp_path, model, place):
    told = {**environment, "MODEL_DIR": model_dir(tmp_path, model), "NNODES": "2"}
    arguments = [f"output_dir={tmp_path / 'run'}", "corpus.name=everyday"]
    arguments.insert(place, "--dry-run")
    result = run(["bash", script(model), *arguments], told)
    assert result.returncode == 0, result.stderr
    assert "16 x h100-80g" in result.stdout
    assert "fits" in result.stdout
    assert "--nnodes" not in result.stdout  # torchrun was not called
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", MODELS)
def test_a_dry_run_in_a_clean_checkout_plans_by_name_and_says_what_is_missing(environment, tmp_path, model):
    told = {key: value for key, value in environment.items() if key != "MODEL_DIR"} | {
        "SELFEMO_DATA": str(tmp_path)
    }
    path = tmp_path / f"Qwen3-{model.upper()}"
    result = run(
        ["bash", script(model), "--dry-run", f"model.path={path}", f"output_dir={tmp_path / 'run'}"], told
    )
    assert result.returncode == 0, result.stderr
    missing = [line for line in result.stdout.splitlines() if line.startswith("missing for a launch: ")]
    assert f"model.path={path} is not there yet: planned as the published {path.name}" in missing[0]
    assert "corpus meld" in missing[1]
    assert "8 x h100-80g" in result.stdout
    launch = run(["bash", script(model), f"model.path={path}", f"output_dir={tmp_path / 'run'}"], told)
    assert launch.returncode == 2
    assert all(part in launch.stderr for part in (str(path), "MODEL_DIR", "model.path", "hf download"))


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_a_launch_never_falls_back_to_the_bundled_corpus(environment, tmp_path, whole_model, model):
    told = {**environment, "MODEL_DIR": whole_model, "SELFEMO_DATA": str(tmp_path)}
    result = run(["bash", script(model), f"output_dir={tmp_path / 'run'}"], told)
    assert result.returncode == 2
    assert "corpus meld" in result.stderr
    assert "$SELFEMO_DATA" in result.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("model.safetensors", "no weights; expected model.safetensors"),
        pytest.param("tokenizer.json", "no tokenizer.json", marks=pytest.mark.slow),
    ],
)
def test_a_launch_refuses_an_incomplete_model_directory(environment, tmp_path, whole_model, lost, told):
    """Refuse before the launch: otherwise every rank would report it, after a minute of imports."""
    shutil.copytree(whole_model, tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    arguments = [f"output_dir={tmp_path / 'run'}", "corpus.name=everyday"]
    result = run(["bash", script("8b"), *arguments], {**environment, "MODEL_DIR": str(tmp_path / "model")})
    assert result.returncode == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


WRONG = {
    "layout": (["parallel.tensor=5"], "parallel.tensor=5", True),
    "model directory": ([], "no such directory", False),
    "field": (["train.learning_rat=1"], "did you mean 'learning_rate'?", True),
    "corpus": (["corpus.path=/no/such/corpus"], "/no/such/corpus", True),
}


@pytest.mark.parametrize(
    "dry", [pytest.param(["--dry-run"], marks=pytest.mark.slow), []], ids=["dry", "launch"]
)
@pytest.mark.parametrize(("overrides", "told", "has_model"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_one_line_before_torchrun(environment, tmp_path, overrides, told, has_model, dry):
    model = model_dir(tmp_path, "8b") if has_model else str(tmp_path / "absent")
    arguments = [*dry, f"output_dir={tmp_path / 'run'}", "corpus.name=everyday", *overrides]
    result = run(["bash", script("8b"), *arguments], {**environment, "MODEL_DIR": model})
    assert result.returncode == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.long
def test_torchrun_runs_the_file_and_its_dry_run_plans_for_the_world_it_is_in(environment, tmp_path):
    """Run the real torchrun with two processes.

    They are the world that is planned for, and one of them prints.
    """
    own = Path(sys.executable).with_name("torchrun")
    told = {**environment, "MODEL_DIR": model_dir(tmp_path, "4b"), "OMP_NUM_THREADS": "1"}
    arguments = [
        "--standalone",
        "--nproc-per-node",
        "2",
        script("4b"),
        "--dry-run",
        "corpus.name=everyday",
        f"output_dir={tmp_path / 'run'}",
    ]
    result = run([str(own), *arguments], told)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 processes = tensor 2 x pipeline 1 x data 1") == 1
    assert result.stdout.count("2 x h100-80g") == 1


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_is_explained_where_it_stands(model):
    lines = (ROOT / "examples" / "configs" / f"qwen3_{model}.yaml").read_text().splitlines()
    settings = [
        line
        for line in lines
        if line.strip() and not line.startswith("#") and not line.rstrip().endswith(":")
    ]
    assert len(settings) > 30
    assert [line for line in settings if " # " not in line] == []


SHELL_ONLY = [
    *ROOT.glob("examples/*_cpu.sh"),
    *ROOT.glob("examples/launch.sh"),
    *ROOT.glob("examples/*.sbatch"),
]


@pytest.mark.parametrize("path", SHELL_ONLY, ids=lambda path: path.name)
def test_every_script_that_is_shell_alone_parses(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
