"""Return a forked checkpoint writer's result to the trainer, and name the cause if writing failed.

The cause tells a full disk from a read-only directory or a lost mount. megatron-core loses it twice: the
writer turns an exception into a RuntimeError that names only its class (0.19.2,
dist_checkpointing/strategies/filesystem_async.py, `write_preloaded_data_multithread`), and only rank 0 learns
of the failure (state_dict_saver.py, `save_state_dict_async_finalize`). Here the writer returns the exception
itself, its errno is read from the text that reaches rank 0, and rank 0 tells the others.
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
"""Write errors of this process. The forked writer has a copy of its own."""


class ForkedResult:
    """Holds a writer's result in anonymous memory: no third process, no pipe that a result could fill."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("selfemo-checkpoint")
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
    """Return a UserError with the system's reason and a remedy if the user can mend the cause, else
    `error` itself.

    Collective if `error` is a CheckpointException, which megatron-core raises on every rank.

    Args:
        directory: the directory that holds the run's checkpoints.
    """
    number = _errno_behind(error)
    if isinstance(error, CheckpointException):
        number = on_rank0(lambda: number)
    if number is None:
        return error
    refusal = UserError(
        f"{directory}: a checkpoint cannot be written ({os.strerror(number)}): {_remedy(number)}, then "
        "run again"
    )
    return on_all_ranks(refusal) if isinstance(error, CheckpointException) else refusal


def _remedy(number: int) -> str:
    if number in FULL:
        return "free space"
    if number in NOT_WRITABLE:
        return "make it writable, or choose another output_dir"
    return "see that the directory exists and its file system is mounted"


def _errno_behind(error: BaseException) -> int | None:
    """Return the number of the OSError behind an exception: one that passed between processes has it only in
    its text."""
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
    """Call megatron-core's `write_preloaded_data` and note a failed write.

    It returns an exception in its result instead of raising it.
    """
    result = _write_file(*args, **kwargs)
    # torch.save raises a RuntimeError from the OSError
    if isinstance(result[1], Exception) and (found := os_error_behind(result[1])):
        _failed_writes.append(found)
    return result


FileSystemWriterAsync.write_preloaded_data = staticmethod(_write_file_noting_errors)  # megatron-private
