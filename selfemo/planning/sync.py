"""Count the bytes that cross between ranks when the trainer's weights go into the engines, for
every pair of ranks.

The direct path sends a rank only the rectangles it lacks. The checkpoint path broadcasts every
stage's shard over the pipeline and gathers the tensor-parallel shards, so that every rank sees full
tensors (selfemo.sync.reshard, gather). Ranks exchange only within their own model replica, and what
a rank receives depends on its tensor rank, its stage and its rank in the engine: a handful of
cases, each computed once per kind of parameter.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

from selfemo.config.layout import Layout
from selfemo.models.architecture import DTYPE_BYTES, Architecture
from selfemo.models.geometry import overlap
from selfemo.planning.parameters import EMBEDDING, Kind, kinds, sent_on


@dataclass(frozen=True)
class SyncBytes:
    """Bytes of one weight sync over the whole world."""

    direct: int
    """Received by all ranks together on the direct path; no path can do with less."""
    checkpoint: int
    """Received by all ranks together when full tensors are gathered everywhere."""
    received_max: int
    """Direct path: the most that one rank receives."""
    checkpoint_received_max: int
    """Checkpoint path: the most that one rank receives."""
    engine_weights: int
    """Weights that are copied into the live parameters of one engine rank."""


def sync_bytes(
    architecture: Architecture,
    layout: Layout,
    engine_dtype: str,
    trainer_dtype: str,
    only_trained: bool = False,
) -> SyncBytes:
    """Count the traffic of a sync: rectangles travel in the engine's dtype, gathered tensors in the
    trainer's.

    Args:
        only_trained: leave out frozen weights, as every sync but the first does into engines that keep
            theirs.
    """
    width, trainer_width = DTYPE_BYTES[engine_dtype], DTYPE_BYTES[trainer_dtype]
    signatures = _signatures(layout)
    received = {
        s: sum(_received(architecture, layout, *s, only_trained).values()) * width for s in signatures
    }
    gathered = {s: _gathered(architecture, layout, s[1], only_trained) * trainer_width for s in signatures}
    return SyncBytes(
        direct=sum(received[s] * count for s, count in signatures.items()),
        checkpoint=sum(gathered[s] * count for s, count in signatures.items()),
        received_max=max(received.values()),
        checkpoint_received_max=max(gathered.values()),
        engine_weights=_engine_elements(architecture, layout, only_trained) * width,
    )


def pair_bytes(
    architecture: Architecture, layout: Layout, engine_dtype: str, copy: int = 0, only_trained: bool = False
) -> dict[tuple[int, int], int]:
    """Count the direct path's bytes within one model replica: {(source rank, target rank): bytes}.

    Pairs without traffic are absent.

    Args:
        copy: number of the model replica.
        only_trained: as in `sync_bytes`.
    """
    width = DTYPE_BYTES[engine_dtype]
    pairs: dict[tuple[int, int], int] = {}
    for stage in range(layout.pipeline):
        for tensor in range(layout.tensor):
            target = layout.rank(tensor, copy, stage)
            for (source_tensor, source_stage), elements in _received(
                architecture, layout, tensor, stage, target % layout.engine_tensor, only_trained
            ).items():
                pairs[layout.rank(source_tensor, copy, source_stage), target] = elements * width
    return pairs


def distinct_pair_bytes(
    architecture: Architecture, layout: Layout, engine_dtype: str
) -> dict[tuple[int, int], int]:
    """As `pair_bytes`, for as many model replicas as differ; those that follow repeat their pattern."""
    pairs: dict[tuple[int, int], int] = {}
    for copy in range(min(_period(layout), layout.weight_copies)):
        pairs |= pair_bytes(architecture, layout, engine_dtype, copy)
    return pairs


def engine_elements(architecture: Architecture, engine_tensor: int) -> int:
    """Count the elements of one engine rank's live parameters, vocabulary padding included."""
    return _engine_elements(architecture, Layout(engine_tensor=engine_tensor), only_trained=False)


def _engine_elements(architecture: Architecture, layout: Layout, only_trained: bool) -> int:
    counts = (
        (kind, sum(sent_on(kind, architecture, layout, only_trained).values()))
        for kind in kinds(architecture)
        if not kind.is_tied_copy
    )
    return sum(kind.vllm(0, layout.engine_tensor).elements * count for kind, count in counts)


def _signatures(layout: Layout) -> Counter[tuple[int, int, int]]:
    """Count the ranks at each (tensor rank, stage, rank in the engine), which alone decides their traffic."""
    period = _period(layout)
    found: Counter[tuple[int, int, int]] = Counter()
    for stage in range(layout.pipeline):
        for tensor in range(layout.tensor):
            for copy in range(min(period, layout.weight_copies)):
                alike = len(range(copy, layout.weight_copies, period))
                found[tensor, stage, layout.rank(tensor, copy, stage) % layout.engine_tensor] += alike
    return found


def _period(layout: Layout) -> int:
    """Number of model replicas after which the ranks of engines line up with those of the trainer
    as before."""
    return layout.engine_tensor // math.gcd(layout.tensor, layout.engine_tensor)


@cache
def _received(
    architecture: Architecture,
    layout: Layout,
    tensor: int,
    stage: int,
    engine_rank: int,
    only_trained: bool,
) -> dict[tuple[int, int], int]:
    """Count the elements that a rank lacks: {(source tensor rank, source stage): elements}."""
    received: dict[tuple[int, int], int] = {}
    tied_apart = architecture.tie_word_embeddings and layout.pipeline > 1
    for kind in kinds(architecture):
        if kind.is_tied_copy:
            continue
        wanted = _sources(kind, layout.tensor, tensor, engine_rank, layout.engine_tensor)
        for source_stage, count in sent_on(kind, architecture, layout, only_trained).items():
            if kind.name == EMBEDDING and tied_apart and stage == layout.pipeline - 1:
                source_stage = stage  # its own copy is nearer
            for source_tensor, elements in wanted.items():
                if (source_tensor, source_stage) != (tensor, stage):
                    key = source_tensor, source_stage
                    received[key] = received.get(key, 0) + elements * count
    return received


@cache
def _sources(kind: Kind, size: int, tensor: int, engine_rank: int, engine_size: int) -> dict[int, int]:
    """Find the tensor-parallel ranks that fill one live parameter, the own rank first: {rank: elements}."""
    found: dict[int, int] = {}
    shards = [kind.megatron(rank, size) for rank in range(size)]
    for box in kind.vllm(engine_rank, engine_size).boxes:
        missing = box.elements
        for rank in sorted(range(size), key=lambda other: other != tensor):
            if missing == 0:
                break  # replicated tensors: the first rank asked holds all of it
            held = sum(part.elements for mine in shards[rank].boxes if (part := overlap(mine, box)))
            if held:
                found[rank] = found.get(rank, 0) + held
                missing -= held
    return found


def _gathered(architecture: Architecture, layout: Layout, stage: int, only_trained: bool) -> int:
    """Count the elements a rank receives on the checkpoint path.

    They are other stages' shards, then the other shards of every parameter.
    """
    total = 0
    for kind in kinds(architecture):
        if not kind.is_tied_copy:
            shard = kind.megatron(0, layout.tensor).elements
            for source_stage, count in sent_on(kind, architecture, layout, only_trained).items():
                total += shard * count * (layout.tensor - 1 + (source_stage != stage))
    return total
