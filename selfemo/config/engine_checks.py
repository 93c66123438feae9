"""Checks what an engine needs of a model: training, `eval` and `chat` go through the same list."""

from __future__ import annotations

from collections.abc import Iterator

from selfemo.config.layout import Layout
from selfemo.config.schema import RunConfig
from selfemo.models.architecture import Architecture

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes for which vLLM's CPU attention has a kernel; a test compares them with the installed vLLM's."""


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
    cached = cache_tokens(config, layout, architecture)
    if cached < longest:
        yield (
            f"rollout.kv_cache_bytes={config.rollout.kv_cache_bytes} holds {cached} tokens per engine, "
            f"fewer than one sequence of model.max_length={longest}"
        )
    if on_cpu and architecture.head_dim not in CPU_HEAD_SIZES:
        yield (
            f"the model's head_dim is {architecture.head_dim}, and vLLM on a CPU takes one of "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}: use such a model, or a GPU"
        )


def cache_tokens(config: RunConfig, layout: Layout, architecture: Architecture) -> int:
    """Count the tokens whose keys and values one engine can hold at once."""
    return int(
        config.rollout.kv_cache_bytes
        / architecture.kv_bytes_per_token(config.rollout.dtype, layout.engine_tensor)
    )
