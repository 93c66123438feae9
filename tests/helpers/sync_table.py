"""Measure both ways of loading weights into vLLM and print a Markdown table.

python -m tests.helpers.sync_table

Two CPU ranks, a random Qwen3 in bf16, a live engine. Seconds are the best of several syncs into the
engine on the slower rank. Extra memory is the peak of tensors alive, on the worse rank: ours while
the stream is drained, and during a sync, with the tensors that vLLM's own loader holds until a
layer is complete.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from selfemo.config.layout import EngineLayout
from selfemo.config.schema import ParallelConfig
from selfemo.sync.transfer import DirectTransfer, choose_transfer
from selfemo.weights.gather import hf_tensors
from selfemo.weights.load import load_hf_weights
from tests.helpers.distributed import DistributedRunner
from tests.helpers.live_bytes import LiveBytes
from tests.helpers.megatron_rank import megatron_chunks, weight_groups
from tests.helpers.sync_engine import engine_for
from tests.helpers.tiny_model import save_tiny

SHAPE = {"heads": 64, "kv_heads": 8, "head_dim": 64, "layers": 8, "vocab_size": 8192}
BUCKET_BYTES = 8 << 20
REPEATS = 5
LAYOUTS = {"TP2": ParallelConfig(tensor=2), "PP2": ParallelConfig(pipeline=2), "DP2": ParallelConfig()}


def measure(
    hf_dir: str, parallel: ParallelConfig, engine_tensor: int, mode: str
) -> tuple[int, int, float, int, int]:
    """Measure on a rank: bytes moved, least bytes possible, seconds, extra bytes of ours and of a
    whole sync.
    """
    rank, engine = dist.get_rank(), engine_for(hf_dir, engine_tensor)
    with megatron_chunks(Path(hf_dir), parallel, torch.bfloat16) as (chunks, architecture, layout):
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.sizes.tensor)
        trainer = layout.sizes.trainer
        engines, groups = (
            EngineLayout(engine_tensor, dist.get_world_size() // engine_tensor),
            weight_groups(layout),
        )
        transfer = choose_transfer(mode, architecture, trainer, engines, groups, engine, rank, BUCKET_BYTES)
        seconds = float("inf")
        for version in range(REPEATS):
            dist.barrier()
            started = time.perf_counter()
            report = transfer.send(chunks, engine, version)
            seconds = min(seconds, time.perf_counter() - started)
        with LiveBytes() as whole:
            transfer.send(chunks, engine, REPEATS)
        with LiveBytes() as memory:
            if isinstance(transfer, DirectTransfer):
                stream = transfer.tensors(chunks)
            else:
                stream = hf_tensors(chunks, architecture, groups, BUCKET_BYTES, include_tied_head=True)
            while (item := next(stream, None)) is not None:
                del item
        return report.received_bytes, report.lower_bound_bytes, seconds, memory.peak_bytes, whole.peak_bytes


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory:
        source = save_tiny(Path(directory), "qwen3", True, torch.bfloat16, **SHAPE)
        size = (source / "model.safetensors").stat().st_size
        print(
            f"Model: {size / 1e6:.1f} MB in bf16; bucket {BUCKET_BYTES / 1e6:.1f} MB; two CPU ranks, gloo.\n"
        )
        _print_row(
            "Megatron",
            "vLLM",
            "path",
            "MB moved",
            "least possible, MB",
            "seconds",
            "extra, MB",
            "with vLLM's loader, MB",
        )
        _print_row("---", "---", "---", "---:", "---:", "---:", "---:", "---:")
        for engine_tensor, engines in ((1, "2 x TP1"), (2, "TP2")):
            runner = DistributedRunner()
            for name, parallel in LAYOUTS.items():
                for mode in ("checkpoint", "direct"):
                    rows = runner(2, measure, str(source), parallel, engine_tensor, mode, timeout_s=900)
                    # A report covers the ranks of one data-parallel replica.
                    replicas = rows if name == "DP2" else rows[:1]
                    moved, least = (sum(row[index] for row in replicas) for index in (0, 1))
                    seconds, extra, whole = (max(row[index] for row in rows) for index in (2, 3, 4))
                    megabytes = [f"{size / 1e6:.1f}" for size in (moved, least, extra, whole)]
                    _print_row(name, engines, mode, *megabytes[:2], f"{seconds:.3f}", *megabytes[2:])
            runner.close()


def _print_row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    # Ranks find `measure` by its module's name, which is not __main__.
    from tests.helpers.sync_table import main as imported_main

    imported_main()
