"""What a forked checkpoint writer returns, and errors of writing with their cause.

The cause tells a full disk from a read-only directory or a lost mount. megatron-core loses it twice: the writer turns an exception into a
RuntimeError that names its class alone (0.19.2, dist_checkpointing/strategies/filesystem_async.py, `write_preloaded_data_multithread`), and
rank 0 alone learns what failed (state_dict_saver.py, `save_state_dict_async_finalize`). Here the writer returns the exception itself, its
errno is read from the text that reaches rank 0, and rank 0 tells the others.
"""

from __future__ import annotations

import errno
import os
import pickle
import queue
import re
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint import CheckpointException

from selfemo.common.errors import UserError, on_all_ranks
from selfemo.common.files import os_error_behind
from selfemo.process.collectives import on_rank0

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_write_file = FileSystemWriterAsync.write_preloaded_data  # megatron-private
_failed_writes: list[OSError] = []
"""What failed in this process: the forked writer's own, since it is a copy."""


class ForkedResult:
    """A writer's result in anonymous memory: no third process, and no pipe that a long result could fill."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("selfemo-checkpoint")
        FileSystemWriterAsync.write_preloaded_data = staticmethod(_write_file_noting_errors)
        _failed_writes.clear()

    def put(self, result: object) -> None:
        """Store the result, or the OSError behind it. Called once, by the writer."""
        if isinstance(result, Exception) and _failed_writes:
            result = _failed_writes[0]
        with os.fdopen(os.dup(self._fd), "wb") as file:
            pickle.dump(result, file)

    def get_nowait(self) -> Any:
        """Read the result. Called once, by the trainer, when the writer has ended.

        Raises:
            queue.Empty: the writer ended without one.
        """
        with os.fdopen(self._fd, "rb") as file:
            file.seek(0)
            content = file.read()
        if not content:
            raise queue.Empty
        return pickle.loads(content)


def write_refusal(error: BaseException, directory: Path) -> BaseException:
    """UserError for what the user can mend, with the system's reason and the remedy; any other error as it is.

    Collective if `error` is a CheckpointException, which megatron-core raises on every rank.

    Args:
        directory: where the run's checkpoints are.
    """
    number = _errno_behind(error)
    if isinstance(error, CheckpointException):
        number = on_rank0(lambda: number)
    if number is None:
        return error
    refusal = UserError(
        f"{directory}: a checkpoint cannot be written ({os.strerror(number)}): {_remedy(number)}, then run again"
    )
    return on_all_ranks(refusal) if isinstance(error, CheckpointException) else refusal


def _remedy(number: int) -> str:
    if number in FULL:
        return "free space"
    if number in NOT_WRITABLE:
        return "make it writable, or choose another output_dir"
    return "see that the directory exists and its file system is mounted"


def _errno_behind(error: BaseException) -> int | None:
    """The error number of the OSError that an exception came from, or that its text holds after a journey between processes."""
    causes = (
        [failure[0] for failure in error.failures.values()]
        if isinstance(error, CheckpointException)
        else [error]
    )
    for cause in causes:
        if (found := os_error_behind(cause)) and found.errno:
            return found.errno
        if match := re.search(r"\[Errno (\d+)\]", str(cause)):
            return int(match[1])
    return None


def _write_file_noting_errors(*args: Any, **kwargs: Any) -> Any:
    """megatron-core's `write_preloaded_data`, whose result holds an exception in place of raising it."""
    result = _write_file(*args, **kwargs)
    if isinstance(result[1], Exception) and (
        found := os_error_behind(result[1])
    ):  # torch.save raises a RuntimeError on top
        _failed_writes.append(found)
    return result
