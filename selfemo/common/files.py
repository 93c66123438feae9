"""Writes files that appear whole or not at all.

Records, checkpoints and the outputs of commands are written so.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from selfemo.common.errors import UserError


def check_target(path: Path, option: str) -> None:
    """Check that a command can write the file that `option` names, before the command does its work.

    Raises:
        UserError: the directory does not exist, or the path is a directory.
    """
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise UserError(
            f"{option} {path}: expected a file in an existing directory: "
            "create the directory, or name another"
        )


@contextmanager
def new_file(target: Path, option: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `target`, with its suffix.

    It is renamed to `target` if the block succeeds, removed if it fails.

    Args:
        option: the command line's name for the target, such as "--json".

    Raises:
        UserError: the file cannot be written; names it.
    """
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"{option} {target}: cannot be written ({error.strerror}): name another file".strip()
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def os_error_behind(error: BaseException) -> OSError | None:
    """Find the OSError that an exception is, or was raised from, or while handling; None if there is none."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found


def replace_text(target: Path, text: str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it.

    `target` holds the old text or the new at any moment, never a part.
    """
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
    """Cut a file back to its first `size_bytes` bytes; `path` must hold at least that many.

    A file that does not exist counts as one of 0 bytes.
    """
    if size_bytes == 0 and not path.exists():
        return
    with path.open("r+b") as file:
        file.truncate(size_bytes)
        os.fsync(file.fileno())


def size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def close_in_children(handle: IO[bytes]) -> None:
    """Close a file that holds a lock in forked children.

    A child that writes a checkpoint must not hold the lock of a run that was killed meanwhile.
    """
    held = weakref.ref(handle)

    def close() -> None:
        inherited = held()
        if inherited is not None and not inherited.closed:
            os.close(inherited.fileno())

    os.register_at_fork(after_in_child=close)
