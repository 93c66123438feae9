"""Test which world the launch scripts read from the environment of SLURM and of Kubernetes.

`selfemo` and `torchrun` only print their arguments here; tests/commands/test_launch_scripts.py has them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "examples" / "train_qwen3_8b.k8s.yaml"


def launch(
    tmp_path: Path, settings: dict[str, str], *arguments: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run the script in an environment that holds nothing but `settings`; returns torchrun's options too."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("selfemo", "torchrun"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (tools / name).chmod(0o755)
    result = subprocess.run(
        ["bash", "examples/train_qwen3_8b.sh", *arguments],
        cwd=ROOT,
        env={"PATH": f"{tools}{os.pathsep}/usr/bin:/bin", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    words = next((line for line in result.stdout.splitlines() if line.startswith("torchrun ")), "").split()
    return result, {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "n[07-08]"}


@pytest.mark.parametrize(
    ("told", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, "4"),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_NODE": "h100:4"}, "4"),
        ({"SLURM_GPUS_PER_NODE": "h100:8(S:0-1)"}, "8"),
        ({"SLURM_GPUS_PER_NODE": "a100:2(S:0),h100:2(S:1)"}, "4"),
        ({"SLURM_GPUS_PER_NODE": "a100:08,h100:1"}, "9"),
        ({"SLURM_GPUS_ON_NODE": "4", "GPUS_PER_NODE": "2"}, "2"),
        ({}, "8"),
    ],
)
def test_the_gpus_of_a_node_are_those_that_slurm_gave(tmp_path, told, gpus):
    result, options = launch(tmp_path, SLURM | told)
    assert options["--nproc-per-node"] == gpus, result.stderr
    assert f"--processes-per-node {gpus} " in result.stdout


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node01", "node01"),
        ("node[01-04,7],gpu3", "node01"),
        ("a,b", "a"),
        ("rack[1-2]n[03,05]", "rack1n03"),
        ("gpu-a[12],b1", "gpu-a12"),
        ("n5-x[3-4].cluster", "n5-x3.cluster"),
    ],
)
def test_the_first_node_of_a_list_is_found_without_scontrol(tmp_path, nodes, first):
    _, options = launch(tmp_path, SLURM | {"SLURM_JOB_NODELIST": nodes})
    assert options["--rdzv-endpoint"] == f"{first}:29500"


def test_a_step_on_a_part_of_the_job_meets_at_its_own_first_node(tmp_path):
    """srun --nodelist=n[09-10] in a job of four nodes: the job's first node is not in the step."""
    step = {"SLURM_STEP_NODELIST": "n[09-10]", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2"}
    job = SLURM | {"SLURM_JOB_NODELIST": "n[07-10]", "SLURM_NNODES": "4"}
    _, options = launch(tmp_path, job | step)
    assert (options["--rdzv-endpoint"], options["--nnodes"]) == ("n09:29500", "2")


@pytest.mark.parametrize(
    "more",
    [{"SLURM_PTY_PORT": "4711"}, {"NNODES": "2"}, {"SLURM_STEP_NUM_TASKS": "2"}],
    ids=lambda more: next(iter(more)),
)
def test_a_task_for_each_gpu_is_refused_before_each_starts_a_world(tmp_path, more):
    tasks = SLURM | {"SLURM_STEP_NUM_TASKS": "16"}
    result, options = launch(tmp_path, tasks)
    assert (result.returncode, options) == (2, {})
    assert result.stderr.startswith("selfemo: 16 tasks on 2 nodes, and each would start torchrun")
    (tmp_path / "again").mkdir()
    result, options = launch(tmp_path / "again", tasks | more)
    assert options["--nnodes"] == "2", result.stderr


def test_the_pods_of_a_train_job_form_one_world(tmp_path):
    """Kubeflow's trainer of version 2 sets PET_ variables alone."""
    told = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "4"}
    _, options = launch(tmp_path, told | {"PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29400"})
    assert options["--rdzv-endpoint"] == "job-node-0-0.job:29400"
    assert (options["--nnodes"], options["--node-rank"], options["--nproc-per-node"]) == ("2", "1", "4")


def test_one_node_needs_no_address(tmp_path):
    result, options = launch(tmp_path, SLURM | {"SLURM_NNODES": "1", "SLURM_NODEID": "0"})
    assert options["--rdzv-endpoint"] == "127.0.0.1:29500"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"SLURM_GPUS_PER_NODE": "1-2"}, "selfemo: GPUS_PER_NODE=1-2: expected a whole number"),
        ({"SLURM_GPUS_PER_NODE": "9" * 20}, f"selfemo: GPUS_PER_NODE={'9' * 20}: expected a whole number"),
        ({"SLURM_GPUS_PER_NODE": "-n"}, "selfemo: GPUS_PER_NODE=-n: expected a whole number"),
        ({"NNODES": "2\n\x1b[2J"}, "selfemo: NNODES=$'2\\n\\E[2J': expected a whole number"),
        ({"SLURM_NNODES": "1-2"}, "selfemo: NNODES=1-2: expected a whole number"),
        ({"PET_NNODES": "1:4"}, "selfemo: NNODES=1:4: expected a whole number"),
        ({"MASTER_PORT": "tcp://10.0.0.1:29500"}, "selfemo: MASTER_PORT=tcp://10.0.0.1:29500: expected"),
        ({"NODE_RANK": "node1"}, "selfemo: NODE_RANK=node1: expected a whole number"),
        ({"SLURM_JOB_NODELIST": ""}, "selfemo: 2 nodes, and no address of the first: set MASTER_ADDR"),
    ],
)
def test_what_is_no_world_is_one_line_before_anything_starts(tmp_path, wrong, line):
    result, options = launch(tmp_path, SLURM | wrong)
    assert (result.returncode, options) == (2, {})
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1


def pods() -> list[dict[str, str]]:
    """List the environments of the manifest's pods, as an operator completes them."""
    replicas = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))["spec"]["pytorchReplicaSpecs"]
    assert list(replicas) == ["Master", "Worker"]
    pods = []
    for spec in replicas.values():
        (container,) = spec["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        assert container["command"] == ["bash", "examples/train_qwen3_8b.sh"]
        own = {entry["name"]: entry.get("value", f"10.0.0.{len(pods)}") for entry in container["env"]}
        pods += [own] * spec["replicas"]
    return pods


@pytest.mark.parametrize(
    "operator",
    [
        lambda pod: {"WORLD_SIZE": "2", "RANK": str(pod)},
        lambda pod: {
            "WORLD_SIZE": "16",
            "RANK": str(pod),
            "PET_NNODES": "2",
            "PET_NODE_RANK": str(pod),
            "PET_NPROC_PER_NODE": "8",
        },
    ],
    ids=["1.5", "1.7"],
)
def test_the_pods_of_a_pytorch_job_form_one_world(tmp_path, operator):
    for number, own in enumerate(pods()):
        (tmp_path / str(number)).mkdir()
        told = {"MASTER_ADDR": "selfemo-qwen3-8b-master-0", "MASTER_PORT": "23456", **operator(number), **own}
        result, options = launch(tmp_path / str(number), told)
        assert result.returncode == 0, result.stderr
        assert (options["--nnodes"], options["--node-rank"], options["--nproc-per-node"]) == (
            "2",
            str(number),
            "8",
        )
        assert options["--rdzv-endpoint"] == "selfemo-qwen3-8b-master-0:23456"
        assert options["--local-addr"] == own["LOCAL_ADDR"]
        assert options["--rdzv-conf"].startswith(f"is_host={1 - number},")
        assert "--nodes 2 --processes-per-node 8 " in result.stdout
