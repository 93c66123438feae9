"""Start ranks by forking a process that has imported torch, Megatron and vLLM.

These imports would cost each new process 20 to 40 s of CPU. The forked process is multiprocessing's
fork server: it lives as long as the test session, starts at the first rank, and never runs a test
itself. A rank has a session and an environment of its own, and writes its output to a file.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.helpers.preloaded"])


def start(
    function: Callable[..., Any], *args: Any, environment: Mapping[str, str], output: Path
) -> ForkServerProcess:
    """Run `function(*args)` in a process of its own.

    Its exit status is that of the SystemExit it raises, else 0 or 1.

    Args:
        environment: added to this process's, whose PYTHONPATH has the checkout first.
        output: file to which stdout and stderr are appended.
    """
    python_path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    with patch.dict(os.environ, PYTHONPATH=python_path):  # the server finds the modules to import by it
        forkserver.ensure_running()
        whole = {**os.environ, **environment}
    process = CONTEXT.Process(target=_run, args=(whole, str(output), function, args))
    process.start()
    return process


def _run(
    environment: dict[str, str], output: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.setsid()
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    try:
        function(*args)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - multiprocessing would print it without the hook that the product installs
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
