"""Converts a Megatron distributed checkpoint into a Hugging Face directory.

    python tools/megatron_to_hf.py --checkpoint checkpoints/qwen3-4b --output exported --verify

transformers and `vllm serve` load the directory as it is. Reads checkpoints of hf_to_megatron.py and of
training runs (--source then names the directory with config and tokenizer), saved in any layout.
Tensors are streamed. On bad input: exit status 2, one line, and nothing half written.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from selfemo.commands.convert import run_conversion
from selfemo.common.arguments import with_home
from selfemo.models.hub import fetch
from selfemo.weights.convert import megatron_to_hf, stored_bytes
from selfemo.weights.safetensors_writer import DEFAULT_SHARD_BYTES


def main(
    checkpoint: Annotated[Path, typer.Option(help="Megatron distributed checkpoint (torch_dist)")],
    output: Annotated[Path, typer.Option(help="Hugging Face directory to create")],
    source: Annotated[
        str,
        typer.Option(
            help="directory or hub name of config.json and tokenizer; default: the checkpoint's own hf/"
        ),
    ] = "",
    verify: Annotated[
        bool, typer.Option(help="read both sides again and compare every tensor bitwise")
    ] = False,
    check_finite: Annotated[bool, typer.Option(help="refuse NaN and infinite values")] = False,
    max_shard_bytes: Annotated[
        int, typer.Option(min=1, help="largest safetensors file")
    ] = DEFAULT_SHARD_BYTES,
) -> None:
    """Convert a Megatron distributed checkpoint into a Hugging Face directory."""
    directory = cache(lambda: fetch(source) if source else "")
    run_conversion(
        lambda progress: megatron_to_hf(
            checkpoint, output, progress, directory(), verify, check_finite, max_shard_bytes
        ),
        lambda: stored_bytes(checkpoint, directory()) * (2 if verify else 1),
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(with_home(sys.argv[1:]))
