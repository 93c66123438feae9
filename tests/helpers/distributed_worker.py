"""Run one rank of a test process group: join gloo once, then run the functions that the parent
sends.

Forked for distributed.py with torchrun's environment variables. It never outlives the test session:
a thread reads the lifeline pipe, whose other end only the parent holds, and at end of file kills
the whole process group, children such as Megatron's checkpoint manager included. A thread does
this, because the main one may hang in a collective.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import importlib.util
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from operator import attrgetter
from typing import Any


def serve(pipe: Connection, lifeline: Connection) -> None:
    """Serve calls over the pipe; each reply is (succeeded, pickled result or formatted traceback)."""
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the parent asks a hanging rank for its stacks
    try:
        _join_group()
        result = None
        while True:
            pipe.send_bytes(pickle.dumps((True, pickle.dumps(result))))
            result = _run(_next_call(pipe))
    except BaseException:  # SystemExit and pytest's outcomes too: the parent must hear of every end
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
        # Wait to be killed: if this rank left, its peers would report the closed connection as
        # failures.
        _next_call(pipe)
        raise


def _next_call(pipe: Connection) -> bytes:
    try:
        return pipe.recv_bytes()
    except EOFError:
        os.killpg(0, signal.SIGKILL)  # the parent is gone; ending alone would leave the children
        raise


def _join_group() -> None:
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")


def _run(call: bytes) -> Any:
    import torch.distributed

    module_name, path, qualname, pickled_args = pickle.loads(call)
    function: Callable[..., Any] = attrgetter(qualname)(_import(module_name, path))
    # Unpickle after the import: an argument may be of a class that the test module defines.
    args = pickle.loads(pickled_args)
    # A model in a reference cycle keeps Megatron's groups, and the thread of every gloo group wakes
    # a hundred times a second.
    gc.collect()
    # Show here, not in the next function, a collective that the last call left unmatched.
    torch.distributed.barrier()
    return function(*args)


def _import(module_name: str, path: str) -> Any:
    """Import the module at `path` under its own name.

    Test modules are in no package, so they are loaded by path; others by name.
    """
    if module_name in sys.modules:
        return sys.modules[module_name]
    if not module_name.split(".")[0].startswith("test"):
        return importlib.import_module(module_name)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: not a Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def _die_with_parent(lifeline: Connection) -> None:
    lifeline.poll(None)
    os.killpg(0, signal.SIGKILL)
