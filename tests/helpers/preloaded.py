"""Import the modules that ranks need, in the process from which they are forked (forked.py).

What they made is frozen then: a rank collects garbage before each call, and 800,000 objects that
live as long as the process would cost it a second of processor time each time.
"""

from __future__ import annotations

import gc
import importlib
import os

from selfemo.rollout.vllm_environment import ENVIRONMENT

os.environ.update(ENVIRONMENT, OMP_NUM_THREADS="1")

for name in (
    "selfemo.commands.main",
    "selfemo.trainer",
    "transformers",
    "transformers.models.qwen3.modeling_qwen3",
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.qwen3",
    "rich.progress",
):
    importlib.import_module(name)

gc.collect()
gc.freeze()
