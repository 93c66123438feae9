"""Joins many engines into one generator: deals requests over replicas, gathers results to every rank.

Every rank calls `generate` with the same requests. A replica takes a contiguous share: the samples of one
prompt stay on one engine, whose prefix cache they share. Ranks of one tensor-parallel engine get identical
shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from selfemo.rollout.api import Completion, Engine, GenerationRequest, check_room


class ReplicatedGenerator:
    """A generator over world_size / tensor_parallel engine replicas; implements rollout.api.Generator."""

    def __init__(self, engine: Engine, tensor_parallel: int) -> None:
        self._engine = engine
        self._tensor_parallel = tensor_parallel
        self.tokens = 0
        """Completion tokens generated so far, over all replicas."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Generate one completion per request, in order, on every rank.

        Raises:
            UserError: a prompt leaves no room for its completion in the engine's longest sequence; on every
                rank alike.
        """
        check_room(requests, self._engine.max_length)
        replicas = dist.get_world_size() // self._tensor_parallel
        replica = dist.get_rank() // self._tensor_parallel
        bounds = [len(requests) * i // replicas for i in range(replicas + 1)]
        mine = self._engine.generate(requests[bounds[replica] : bounds[replica + 1]])
        if dist.get_world_size() == 1:
            gathered = mine
        else:
            shares: list[list[Completion]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(shares, mine)
            gathered = [completion for share in shares[:: self._tensor_parallel] for completion in share]
        self.tokens += sum(len(c.token_ids) for c in gathered)
        return gathered
