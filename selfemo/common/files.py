"""Files that appear whole or not at all: what records and checkpoints are written with, and what commands write where a user says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfemo.common.errors import UserError


def check_target(path: Path, option: str) -> None:
    """UserError where a command cannot write the file that `option` names: found before its work, not after."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise UserError(
            f"{option} {path}: expected a file in an existing directory: create the directory, or name another"
        )


@contextmanager
def new_file(target: Path, option: str = "") -> Iterator[Path]:
    """A temporary path beside `target`, of its suffix: renamed to it where the block succeeds, removed where it fails.

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
    """The OSError that an exception is or was raised from, or while handling; None where there is none."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found


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
