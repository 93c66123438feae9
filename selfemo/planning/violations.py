"""What makes a run impossible on a world of a given size, told together: a config is mended once, not once per launch.

Fields that contradict each other are config_file's business; here they meet the model and the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

from selfemo.config import RunConfig
from selfemo.kernels.config import PRESETS
from selfemo.planning.generation import Engine
from selfemo.planning.layout import Layout, layout_violations
from selfemo.weights.architecture import Architecture


def run_violations(config: RunConfig, layout: Layout, architecture: Architecture) -> Iterator[str]:
    """Everything in which a configuration does not fit its world or its model, one sentence each."""
    yield from layout_violations(layout, architecture)
    preset = PRESETS.get(config.algorithm.loss)
    if layout.context > 1 and preset is not None and preset.ratio_level == "sequence":
        yield (
            f"algorithm.loss={config.algorithm.loss} takes one ratio per sequence, and parallel.context={layout.context} leaves each rank "
            "a part of it: set parallel.context=1, or another algorithm.loss"
        )
    if layout.context > 1 and config.train.dtype == "float32":
        yield (
            f"parallel.context={layout.context} needs Transformer Engine's attention over split sequences, on a GPU and in bf16, "
            "but train.dtype=float32: set train.dtype=bfloat16, or parallel.context=1"
        )
    longest, limit = config.model.max_length, architecture.max_position_embeddings
    if longest > limit:
        yield f"model.max_length={longest} is above the {limit} positions that the model knows"
    cached = cache_tokens(config, layout, architecture)
    if cached < longest:
        yield (
            f"rollout.kv_cache_bytes={config.rollout.kv_cache_bytes} holds {cached} tokens per engine, "
            f"fewer than one sequence of model.max_length={longest}"
        )


def cache_tokens(config: RunConfig, layout: Layout, architecture: Architecture) -> int:
    """Tokens whose keys and values an engine can hold at once."""
    engine = Engine(architecture, layout.engine_tensor, config.rollout.dtype, config.rollout.kv_cache_bytes, config.rollout.max_num_seqs)
    return int(config.rollout.kv_cache_bytes / engine.kv_bytes_per_token)
