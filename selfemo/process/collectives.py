"""Brings the ranks of a run to agreement: one answer for all of them, or one error that all of them raise.

A file apart from process.dealing because it imports torch, and code that only reads records must not wait for
that.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist

from selfemo.common.errors import UserError, on_all_ranks
from selfemo.process import watchdog


def on_rank0[T](compute: Callable[[], T]) -> T:
    """Run `compute` on rank 0 and return its result on every rank.

    If it raises, every rank raises. Collective.
    """
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer = [compute(), None]
        except Exception as error:  # noqa: BLE001 - raised again below, on every rank
            answer = [None, error]
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise on_all_ranks(answer[1])
    result: T = answer[0]
    return result


def fail_together(problem: str) -> None:
    """Raise UserError on every rank if some rank has a problem; "" is none. Collective."""
    problems = [("", "")] * dist.get_world_size()
    dist.all_gather_object(problems, (socket.gethostname(), problem))
    for rank, (host, found) in enumerate(problems):
        if found:
            raise on_all_ranks(UserError(f"rank {rank} on {host}: {found}" if rank else found))


def raise_together(raised: Exception | None) -> None:
    """Raise an exception on every rank if some rank has one; of several, the first rank's. Collective.

    Exceptions travel only if there is one: thousands of ranks would unpickle thousands of answers.
    """
    found = [raised] * dist.get_world_size()
    if len(found) > 1:
        with watchdog.doing("agreement whether a rank failed"):
            if not _on_any_rank(raised is not None):
                return
            dist.all_gather_object(found, raised)
    for error in found:
        if error is not None:
            raise on_all_ranks(error)


def _on_any_rank(holds: bool) -> bool:
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    found = torch.tensor(holds, dtype=torch.int32, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def together[T](compute: Callable[[], T]) -> T:
    """Run `compute` on every rank. What it raises on one rank, every rank raises.

    Collective; `compute` may communicate only among ranks that then raise alike.
    """
    result, raised = None, None
    try:
        result = compute()
    except Exception as error:  # noqa: BLE001 - raised again, on every rank
        raised = error
    raise_together(raised)
    return cast(T, result)


def all_or_none[T](read: Callable[[], T]) -> T:
    """Run `read` on every rank. If it raises UserError on any rank, raise on all.

    Collective; `read` itself must not communicate.
    """
    result, problem = None, ""
    try:
        result = read()
    except UserError as error:
        problem = str(error)
    fail_together(problem)
    return cast(T, result)
