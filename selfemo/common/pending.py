"""Writes directories that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfemo.common.errors import UserError

WRITE_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)
"""Errors of a write into the new directory. Any other error may come from files that are read meanwhile."""


@contextmanager
def new_directory(final: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary directory beside `final`.

    It is renamed to `final` if the block succeeds, removed if it fails.

    Args:
        final: the directory to create; it must not exist, or be empty.
        needed_bytes: size of the files to write, checked against the free space before the block.

    Raises:
        UserError: `final` exists, cannot be made, or the disk is (or becomes) full; names the path.
    """
    final = Path(final)
    pending = final.with_name(f".{final.name}.pending-{os.getpid()}")
    begun = False
    try:
        _make(final, pending, needed_bytes)
        begun = True
        yield pending
        os.replace(pending, final)
    except OSError as error:
        if begun and error.errno not in WRITE_ERRORS:
            raise
        raise UserError(
            f"{final}: cannot be written ({error.strerror}); free space or choose another output"
        ) from None
    finally:
        shutil.rmtree(pending, ignore_errors=True)


def _make(final: Path, pending: Path, needed_bytes: int) -> None:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"{final}: exists already; choose another output or remove it")
    final.parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(final.parent).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{final}: needs {needed_bytes:,} bytes, but {free_bytes:,} are free there; choose another disk"
        )
    pending.mkdir()
