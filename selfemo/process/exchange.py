"""Exchanges counts, arrays of integers and objects between the ranks of a run."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist

from selfemo.process import watchdog


def rows_of_ranks(row: Sequence[int], device: torch.device) -> list[list[int]]:
    """Return the rows of all ranks, in order of rank; all have the same length. Collective."""
    mine = torch.tensor(row, dtype=torch.int64, device=device)
    joined = mine.new_empty(dist.get_world_size() * len(mine))
    with watchdog.doing("exchange of counts"):
        dist.all_gather_into_tensor(joined, mine)
    return joined.reshape(-1, len(mine)).tolist()


def tables_of_ranks(table: torch.Tensor, rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """Join the ranks' tables, in order of rank, on the CPU. Collective.

    Args:
        table: int32 [R, C] of this rank.
        rows: R of every rank.
    """
    padded = torch.zeros(max(rows), table.shape[1], dtype=torch.int32, device=device)
    padded[: len(table)] = table
    joined = padded.new_empty(len(rows) * len(padded), table.shape[1])
    with watchdog.doing("exchange of lengths"):
        dist.all_gather_into_tensor(joined, padded)
    filled = torch.arange(len(padded)) < torch.tensor(rows)[:, None]
    return joined.cpu()[filled.flatten()]


def exchange(sent: Mapping[int, array[int]], device: torch.device) -> dict[int, array[int]]:
    """Send int32 arrays to ranks, and return those that others sent here, by rank. Collective.

    Args:
        sent: by receiving rank; ranks that are left out get nothing.
    """
    ranks = dist.get_world_size()
    if ranks == 1:
        return dict(sent)
    counts = torch.tensor([len(sent.get(rank, ())) for rank in range(ranks)], device=device)
    incoming = torch.empty_like(counts)
    with watchdog.doing("exchange of samples"):
        dist.all_to_all_single(incoming, counts)
        joined = array("i")
        for rank in sorted(sent):
            joined += sent[rank]
        out = torch.frombuffer(joined, dtype=torch.int32) if joined else torch.empty(0, dtype=torch.int32)
        out = out.to(device)
        received = torch.empty(int(incoming.sum()), dtype=torch.int32, device=device)
        dist.all_to_all_single(received, out, incoming.tolist(), counts.tolist())
    sizes, whole = incoming.tolist(), array("i", received.cpu().numpy().tobytes())
    ends = accumulate(sizes)
    return {rank: whole[end - size : end] for rank, (size, end) in enumerate(zip(sizes, ends)) if size}


def pack(item: Any) -> bytes:
    """Pickle an item that travels between the processes of this run alone."""
    return pickle.dumps(item)


def unpack(packed: bytes) -> Any:
    """Read an item that `pack` wrote."""
    return pickle.loads(packed)


def send_objects(sent: Mapping[int, Any], device: torch.device) -> dict[int, Any]:
    """Send objects to ranks, and return those that others sent here, in order of rank. Collective.

    They travel pickled, between the processes of this run alone. A rank receives what was sent to it, and no
    padding.
    """
    if dist.get_world_size() == 1:
        return dict(sent)
    arrays = {}
    for rank, value in sent.items():
        pickled = pickle.dumps(value)
        arrays[rank] = array("i", pickled + b"\0" * (-len(pickled) % array("i").itemsize))
    return {rank: pickle.loads(received.tobytes()) for rank, received in exchange(arrays, device).items()}
