"""Runs `selfemo train` in rank processes forked from one that has imported everything: what a fault test pays for imports only once.

The fork changes nothing that a fault could meet: ranks are processes of their own with torchrun's environment, and end as torchrun ends
them (after the first failure the others get SIGTERM, then SIGKILL). tests/faults/test_torchrun.py does it under torchrun.

Reads one JSON request a line (`Launcher.start`) and answers with two lines: {"pids": ...} and, when all have ended,
{"codes": exit status by rank, "at": time}.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from typing import Any

GRACE_S = 30.0
"""torchrun's own time between SIGTERM and SIGKILL."""
POLL_S = 0.1
MODULES = (
    "selfemo.cli",
    "selfemo.trainer",
    "transformers",
    "transformers.models.qwen3.modeling_qwen3",
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.qwen3",
    "rich.progress",
)


def serve() -> None:
    """Import, then answer requests until stdin ends."""
    from selfemo.rollout.engine import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    for name in MODULES:
        importlib.import_module(name)
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pids = [_fork(rank, request) for rank in range(request["world_size"])]
        print(json.dumps({"pids": pids}), flush=True)
        codes = _wait(pids)
        print(json.dumps({"codes": codes, "at": time.time()}), flush=True)


def _fork(rank: int, request: dict[str, Any]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        log = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(0)
        world = str(request["world_size"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"]), "OMP_NUM_THREADS": "1"}
        from tests.faults.run_with_faults import main

        sys.argv = ["selfemo", *request["arguments"]]
        status = main(request["faults"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - whatever it is, a forked rank must not go on as its parent
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(pids: list[int]) -> list[int]:
    codes: dict[int, int] = {}
    deadline: float | None = None
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if deadline is None and any(codes.values()):
            deadline = time.monotonic() + GRACE_S
            _signal(set(pids) - set(codes), signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal(set(pids) - set(codes), signal.SIGKILL)
        time.sleep(POLL_S)
    return [codes[pid] for pid in pids]


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


if __name__ == "__main__":
    serve()
