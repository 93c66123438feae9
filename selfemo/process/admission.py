"""Tells every rank of a launch whether rank 0 got the run's directory.

Over torchrun's store alone: a launch that is refused beside a live run must not touch the GPUs that the live
run fills, and must end on every node.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

Verdict = Literal["go on", "complete", "refused"]


@dataclass(frozen=True)
class Place:
    """This process's place in torchrun's world."""

    rank: int
    world_size: int


def agree(place: Place, verdict: Verdict | None, timeout_s: float) -> Verdict:
    """Return rank 0's verdict on every rank; the other ranks pass None. Collective.

    Rank 0 returns last, since the store may end with its process.
    """
    if place.world_size == 1:
        assert verdict is not None
        return verdict
    from torch.distributed import PrefixStore, rendezvous  # imported here, since it takes seconds

    timeout = timedelta(seconds=timeout_s)
    shared, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"selfemo/admission/{attempt}", shared)
    if verdict is not None:
        store.set("verdict", verdict)
        store.wait(["heard"], timeout)
        return verdict
    store.wait(["verdict"], timeout)
    told = store.get("verdict").decode()
    if store.add("ranks that heard", 1) == place.world_size - 1:
        store.set("heard", "")
    return next(known for known in get_args(Verdict) if known == told)
