"""Builds the trainer and engine for the steps `sync` and `sleep`: a run's own parts, around a small Qwen3.

Overrides come last on the command line, as for `selfemo train`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from selfemo.config.load import load_config
from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.records.directory import RunDirectory
from selfemo.system import System, build_system, join_world

SMALL_QWEN3 = (
    "model.vocab_size=2048",
    "model.hidden_size=512",
    "model.intermediate_size=1024",
    "model.num_layers=4",
    "model.num_heads=8",
    "model.num_kv_heads=4",
    "model.head_dim=64",  # a size that flash-attn, FlashInfer and vLLM's CPU attention all take
    "model.max_length=512",
    "corpus.name=everyday",
    "rollout.max_num_seqs=32",
)


def small_config(overrides: list[str] | None = None) -> RunConfig:
    """Return a run's configuration around the small model: bf16 on a GPU, fp32 on a CPU."""
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    dtypes = (f"train.dtype={dtype}", f"rollout.dtype={dtype}")
    return load_config(None, [*SMALL_QWEN3, *dtypes, *(sys.argv[1:] if overrides is None else overrides)])


def small_system(config: RunConfig) -> System:
    """Join torchrun's world and build learner, engine and sync in it.

    Files go to a directory that rank 0 names.
    """
    world = join_world(config)
    name = [tempfile.mkdtemp(prefix="selfemo-gpu-check-") if world.layout.is_main else ""]
    dist.broadcast_object_list(name, src=0)
    return build_system(config, world, RunDirectory(Path(name[0])), load_run_corpus(config))
