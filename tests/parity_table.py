"""Measures how far every layout is from one process and writes docs/parity.md: `python -m tests.parity_table`."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

from selfemo.config import ParallelConfig
from tests.distributed.harness import DistributedRunner
from tests.megatron.parity import GROUP_SIZE, GROUPS, LAYOUTS, STEPS, difference, three_steps
from tests.weights.tiny import save_tiny

TARGET = Path(__file__).resolve().parents[1] / "docs" / "parity.md"
LAYERS = 4
MACHINE = "2 x86 cores with AVX-512, 24 GiB, gloo"


def main() -> None:
    """Run every layout and write the page."""
    runner, rows = DistributedRunner(), []
    with tempfile.TemporaryDirectory() as directory:
        for tied in (True, False):
            hf_dir = str(save_tiny(Path(directory) / str(tied), "qwen3", tied, layers=LAYERS))
            one = runner(1, three_steps, hf_dir, ParallelConfig(), timeout_s=900)[0]
            for name, (processes, parallel) in LAYOUTS.items():
                traces = runner(processes, three_steps, hf_dir, parallel, timeout_s=900)
                worst = max((difference(one, trace) for trace in traces), key=lambda found: found.largest)
                figures = f"{worst.loss:.1e} | {worst.grad_norm:.1e} | {worst.parameter:.1e}"
                rows.append(f"| {name} | {processes} | {'tied' if tied else 'untied'} | {figures} |")
                print(rows[-1], flush=True)
    runner.close()
    TARGET.write_text(page(rows), encoding="utf-8")


def page(rows: list[str]) -> str:
    """docs/parity.md."""
    return "\n".join(
        [
            "# Layout parity",
            "",
            f"Written by `python -m tests.parity_table` on {datetime.date.today()}; {MACHINE}.",
            "",
            f"{STEPS} clipped AdamW steps of the whole SELF-GRPO loss (reference and old-policy passes, KL, entropy, importance",
            f"weights) on {GROUPS} groups of {GROUP_SIZE} samples of 4 to 65 tokens, packed into micro-batches of at most 96 tokens, so",
            "that groups straddle micro-batches and data-parallel ranks. A tiny Qwen3 in fp32, 4 layers, with a vocabulary of 131",
            "that divides by no tensor-parallel size. Largest absolute difference of any rank to the run in one process; SP is",
            "sequence parallel, DO the distributed optimizer.",
            "",
            "| layout | processes | embeddings | loss | gradient norm | parameters |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "The same comparison is a test (`tests/megatron/test_parity.py`, bound 1e-6), with one more that only changes how samples",
            "are dealt over micro-batches; bf16 has one of its own (`tests/megatron/test_bf16.py`). Context parallelism needs",
            "Transformer Engine's attention and is refused on CPU; dropout is refused everywhere.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
