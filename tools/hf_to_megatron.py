"""Converts a Hugging Face model directory into a Megatron distributed checkpoint.

    python tools/hf_to_megatron.py --source Qwen3-4B --output checkpoints/qwen3-4b --verify

The checkpoint loads in any TP x PP layout. Tensors are streamed, so memory is bounded by a bucket, not
by the model. On bad input: exit status 2, one line, and nothing half written.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from selfemo.commands.convert import run_conversion
from selfemo.common.arguments import with_home
from selfemo.models.architecture import read_architecture
from selfemo.models.hub import fetch
from selfemo.weights.convert import DEFAULT_BUCKET_BYTES, hf_to_megatron, source_bytes
from selfemo.weights.hf_directory import HfDirectory


def main(
    source: Annotated[
        str, typer.Option(help="Hugging Face directory (config.json, safetensors), or a name on the hub")
    ],
    output: Annotated[Path, typer.Option(help="checkpoint directory to create")],
    verify: Annotated[
        bool, typer.Option(help="read both sides again and compare every tensor bitwise")
    ] = False,
    check_finite: Annotated[bool, typer.Option(help="refuse NaN and infinite values")] = False,
    bucket_bytes: Annotated[
        int, typer.Option(min=1, help="bytes of weights held in memory at a time")
    ] = DEFAULT_BUCKET_BYTES,
) -> None:
    """Convert a Hugging Face model directory into a Megatron distributed checkpoint."""

    directory = cache(lambda: fetch(source))

    def total_bytes() -> int:
        architecture, weights = read_architecture(directory()), HfDirectory(directory())
        weights.check(architecture)
        return source_bytes(weights, architecture) * (2 if verify else 1)

    run_conversion(
        lambda progress: hf_to_megatron(directory(), output, progress, verify, check_finite, bucket_bytes),
        total_bytes,
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(with_home(sys.argv[1:]))
