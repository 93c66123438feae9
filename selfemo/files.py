"""Files that are on disk, whole, when a function returns: what records and checkpoints are written with."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(target: Path, text: str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it: `target` holds the old text or the new, never less."""
    temporary = target.with_name(f".{target.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)


def fsync_directory(directory: Path) -> None:
    """Flush the names in a directory to disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file back to its first `size_bytes` bytes (0 for one that does not exist); `path` must hold at least that many."""
    if size_bytes == 0 and not path.exists():
        return
    with path.open("r+b") as file:
        file.truncate(size_bytes)
        os.fsync(file.fileno())


def size_of(path: Path) -> int:
    """Bytes in a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
