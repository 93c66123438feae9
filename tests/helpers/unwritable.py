"""Run a function as a user who can write nothing, as on a read-only file system."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOBODY = 65534


def as_reader(root: Path, function: Callable[..., Any], *arguments: Any, barred: Path | None = None) -> Any:
    """Return function(*arguments), called in a fork that may read everything below `root` but `barred`, and
    write nothing there.

    An exception's text comes back in place of a result.
    """
    paths = [root, *root.rglob("*")]
    for path in paths:
        path.chmod(0 if path == barred else 0o555 if path.is_dir() else 0o444)
    for parent in root.parents:
        if parent.owner() == root.owner() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            answer = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = f"{type(error).__name__}: {error}"
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            return pickle.load(pipe)
    finally:
        os.waitpid(child, 0)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
