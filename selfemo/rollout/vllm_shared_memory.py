"""Gives the shared memory of one CPU engine, in which its ranks meet, a name of its own.

vLLM names it after the port at which its ranks rendezvous. Under an external launcher there is no port, and
every engine of the machine gets the same name: a second run would meet the first one's memory, and memory
left by a killed run would keep the next from starting.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist


@contextmanager
def named_shared_memory() -> Iterator[None]:
    """Name the shared memory of a CPU engine that is built in this block and spans ranks.

    Collective over the default process group. The name is drawn at random and removed when all ranks have
    met, so that a killed run leaves nothing behind.
    """
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher  # vllm-private

    name = [secrets.token_hex(8)]
    dist.broadcast_object_list(name, src=0)
    original = ExecutorWithExternalLauncher._distributed_args  # vllm-private

    def distributed_args(_self: object) -> tuple[str, int, int]:
        # vLLM takes the part after the last colon for the port. The address itself is not used, as the group
        # exists.
        return f"env://:selfemo-{name[0]}", int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])

    ExecutorWithExternalLauncher._distributed_args = distributed_args
    try:
        yield
    finally:
        ExecutorWithExternalLauncher._distributed_args = original
    dist.barrier()  # the ranks of every engine have met
    for path in Path("/dev/shm").glob(f"selfemo-{name[0]}-*"):
        path.unlink(missing_ok=True)
