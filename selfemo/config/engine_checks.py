"""Checks what an engine needs of a model: training, `eval` and `chat` go through the same list."""

from __future__ import annotations

import math
from collections.abc import Iterator

from selfemo.config.layout import Layout
from selfemo.config.schema import RunConfig
from selfemo.models.architecture import Architecture

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes for which vLLM's CPU attention has a kernel; a test compares them with the installed vLLM's."""
BATCHED_TOKENS = 16_384
"""Tokens that an engine may compute in one step; a sequence takes at least one of them."""
BLOCK_TOKENS = 32
"""Tokens of a block of the cache on a CPU; on a GPU they are 16."""


def engine_violations(
    config: RunConfig, layout: Layout, architecture: Architecture, on_cpu: bool = False
) -> Iterator[str]:
    """Find every way in which a configuration does not fit its engine, one sentence each.

    Args:
        on_cpu: the engine is to run on a CPU.
    """
    longest, limit = config.model.max_length, architecture.max_position_embeddings
    if longest > limit:
        yield f"model.max_length={longest} is above the {limit} positions that the model knows"
    cached = config.rollout.kv_cache_bytes
    token_bytes = architecture.kv_bytes_per_token(config.rollout.dtype, layout.engine_tensor)
    # vLLM cuts the cache into whole blocks, and keeps one of them for itself
    needed = math.ceil((math.ceil(longest / BLOCK_TOKENS) + 1) * BLOCK_TOKENS * token_bytes)
    if cached < needed:
        yield (
            f"rollout.kv_cache_bytes={cached} holds {int(cached / token_bytes)} tokens per engine, too few "
            f"for one sequence of model.max_length={longest} in whole blocks: it takes at least {needed}"
        )
    at_once = max(BATCHED_TOKENS, longest)
    if config.rollout.max_num_seqs > at_once:
        yield (
            f"rollout.max_num_seqs={config.rollout.max_num_seqs} is above the {at_once} tokens that an "
            "engine computes at once"
        )
    if on_cpu and architecture.head_dim not in CPU_HEAD_SIZES:
        yield (
            f"the model's head_dim is {architecture.head_dim}, and vLLM on a CPU takes one of "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}: use such a model, or a GPU"
        )
