"""Test a checkpoint that cannot be written.

Every rank has the reason, and the three kinds are told apart.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from selfemo.common.errors import UserError
from selfemo.config.schema import ParallelConfig
from selfemo.megatron.checkpoint import TensorWrite
from tests.helpers.parity import learner
from tests.helpers.tiny_model import save_tiny

STRUCK_RANK = 1
"""Not rank 0, which alone gathers the writers' results."""


@contextlib.contextmanager
def _full_disk(directory: Path) -> Iterator[None]:
    """Limit the size of files.

    Writes fail where they fail on a full disk, with an error of the same class.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _refusing(number: int, directory: Path) -> Iterator[None]:
    """Make opening a file fail with this error number.

    Permissions would not stop root, and no test can lose a mount.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    def refuse(path: str, mode: str) -> None:
        raise OSError(number, os.strerror(number), path)

    filesystem_async.open = refuse
    try:
        yield
    finally:
        del filesystem_async.open


FAULTS = {
    "full": _full_disk,
    "lost": partial(_refusing, errno.ESTALE),
    "read-only": partial(_refusing, errno.EROFS),
}


def _write(hf_dir: str, directory: str, fault: str, background: bool) -> str:
    """Return the message of the UserError that this rank raises."""
    path = Path(directory)
    path.mkdir(exist_ok=True)
    with learner(hf_dir, ParallelConfig(tensor=2)) as model:
        torch.distributed.barrier()
        struck = (
            FAULTS[fault](path) if torch.distributed.get_rank() == STRUCK_RANK else contextlib.nullcontext()
        )
        try:
            with struck:
                TensorWrite(model, path, {}, in_background=background).is_done(blocking=True)
        except UserError as error:
            return str(error)
    return ""


TOLD = {
    "full": "(File too large): free space",
    "lost": "(Stale file handle): see that the directory exists and its file system is mounted",
    "read-only": "(Read-only file system): make it writable, or choose another output_dir",
}


@pytest.mark.parametrize(
    ("fault", "background"),
    [
        pytest.param("full", False, id="full-waiting", marks=pytest.mark.slow),
        pytest.param("full", True, id="full-in the background"),
        pytest.param("lost", False, id="lost-waiting"),
        pytest.param("lost", True, id="lost-in the background", marks=pytest.mark.slow),
        pytest.param("read-only", False, id="read-only-waiting", marks=pytest.mark.slow),
        pytest.param("read-only", True, id="read-only-in the background"),
    ],
)
def test_every_rank_tells_why_one_rank_could_not_write(distributed, tmp_path, fault, background):
    hf_dir = save_tiny(tmp_path / "model", "qwen3", True)
    place = tmp_path / "checkpoints"
    place.mkdir()
    messages = distributed(2, _write, str(hf_dir), str(place / "one"), fault, background, timeout_s=240)
    assert messages == [f"{place}: a checkpoint cannot be written {TOLD[fault]}, then run again"] * 2
