"""Run two nodes on one machine: two torchrun agents that meet over loopback, as two hosts meet over
a network.

bash runs the launch script on the first node, torchrun runs the same file on the second: both ways
in one world. Sizes of the example's configuration are overridden by those of the smallest run
(tests/faults/tiny.yaml).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "examples/train_qwen3_4b.sh"
FOR_A_CPU = {
    "model.path": "",
    "model.tie_word_embeddings": True,
    "parallel.sequence_parallel": False,
    "rollout.dtype": "float32",
    "rollout.enforce_eager": True,
    "train.dtype": "float32",
    "train.max_tokens_per_microbatch": 2048,
    "corpus.max_turn_tokens": 32,
}
TIMEOUT_S = 3000
"""Seconds; importing the libraries takes minutes on a busy machine."""


class Node:
    """One torchrun agent with its workers, in a session of its own."""

    def __init__(
        self, rank: int, processes: int, port: int, overrides: Sequence[str], log: Path, restarts: int = 0
    ) -> None:
        self._log = log
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": "lo",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # the script sets it; torchrun alone does not
        }
        told = {
            "NNODES": "2",
            "NODE_RANK": str(rank),
            "GPUS_PER_NODE": str(processes),
            "RUN_ID": f"test-{port}",
        }
        told |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "LOCAL_ADDR": "127.0.0.1",
            "MAX_RESTARTS": str(restarts),
        }
        told |= {"RENDEZVOUS_TIMEOUT_S": str(TIMEOUT_S)}
        meet = [
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            f"127.0.0.1:{port}",
            "--rdzv-id",
            f"test-{port}",
            "--local-addr",
            "127.0.0.1",
        ]
        # On one machine any agent could host the rendezvous
        meet += [
            "--rdzv-conf",
            f"is_host=0,read_timeout={TIMEOUT_S}",
        ]
        size = ["--nnodes", "2", "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
        command = (
            ["bash", SCRIPT, *overrides] if rank == 0 else ["torchrun", *size, *meet, SCRIPT, *overrides]
        )
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, **(told if rank == 0 else {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait(self) -> int:
        """Wait for the agent; returns its exit status."""
        return self._process.wait(timeout=TIMEOUT_S)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """Read the terminal output of agent and workers."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill agent and workers at once, as if the node had lost power."""
        # torchrun puts every worker in a session of its own.
        for pid in (
            self._process.pid,
            *_children(self._process.pid),
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def two_nodes(processes: int, overrides: Sequence[str], logs: Path, restarts: int = 0) -> Any:
    """Start both nodes; kill the processes left at the end.

    Yields the nodes and a function that starts the second again.
    """
    port = free_port()
    nodes: list[Node] = []

    def start(rank: int) -> Node:
        nodes.append(Node(rank, processes, port, overrides, logs / f"node{rank}.log", restarts))
        return nodes[-1]

    try:
        yield [start(0), start(1)], lambda: start(1)
    finally:
        for node in nodes:
            if node.is_running:
                node.kill()


def settings(output: Path, **changed: Any) -> list[str]:
    """List overrides that turn the example's configuration into the smallest run; `changed`
    (section__field) last.
    """
    tiny = yaml.safe_load((ROOT / "tests" / "faults" / "tiny.yaml").read_text())
    named = {key.replace("__", "."): value for key, value in changed.items()}
    values = {**FOR_A_CPU, **_flat(tiny), "output_dir": str(output), **named}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def events(output: Path, kind: str) -> list[dict[str, Any]]:
    """Read the events of a kind in a run's metrics.jsonl; a line that is being written is left out."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["event"] == kind]


def until(condition: Callable[[], bool], nodes: Sequence[Node], what: str) -> None:
    """Wait for a condition; fail as soon as a node has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        ended = [node for node in nodes if not node.is_running]
        assert not ended, f"a node ended before {what}:\n{ended[0].output[-3000:]}"
        assert time.monotonic() < deadline, f"no {what} after {TIMEOUT_S} s"
        time.sleep(0.2)


def free_port() -> int:
    """Find a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _children(pid: int) -> list[int]:
    """List the process ids of all descendants."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in listed.read_text().split()] if listed.exists() else []
    return [*found, *(other for child in found for other in _children(child))]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
