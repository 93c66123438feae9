"""Measure the difference of every layout to one process and write docs/parity.md.

python -m tests.helpers.parity_table
"""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

from selfemo.config.schema import ParallelConfig
from tests.helpers import context_parallel
from tests.helpers.context_parallel import OPTIONS
from tests.helpers.distributed import DistributedRunner
from tests.helpers.parity import (
    GROUP_SIZE,
    GROUPS,
    LAYOUTS,
    SLOW,
    STEPS,
    Trace,
    difference,
    three_sft_steps,
    three_steps,
)
from tests.helpers.tiny_model import save_tiny

TARGET = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
LAYERS = 4
MACHINE = "2 x86 cores with AVX2, 24 GiB, gloo"


def main() -> None:
    """Run every layout and write the page."""
    runner = DistributedRunner()
    with tempfile.TemporaryDirectory() as directory:
        rows = layout_rows(runner, Path(directory))
        shared = context_rows(runner, Path(directory))
    runner.close()
    TARGET.write_text(page(rows, shared), encoding="utf-8")


def layout_rows(runner: DistributedRunner, directory: Path) -> list[str]:
    """Make the rows of the first table."""
    rows = []
    for tied in (True, False):
        hf_dir = str(save_tiny(directory / str(tied), "qwen3", tied, layers=LAYERS))
        one = runner(1, three_steps, hf_dir, ParallelConfig(), timeout_s=900)[0]
        for name, (processes, parallel) in LAYOUTS.items():
            traces = runner(processes, three_steps, hf_dir, parallel, timeout_s=900)
            rows.append(f"| {name} | {processes} | {'tied' if tied else 'untied'} | {worst(one, traces)} |")
            print(rows[-1], flush=True)
    return rows


def context_rows(runner: DistributedRunner, directory: Path) -> list[str]:
    """Make the rows of the second table, whose attention is the tests' own."""
    rows = []
    hf_dir = str(save_tiny(directory / "context", "qwen3", True, layers=LAYERS))
    stages = (
        ("SELF-GRPO", three_steps, context_parallel.three_steps),
        ("SFT", three_sft_steps, context_parallel.three_sft_steps),
    )
    for stage, alone, shared in stages:
        one = runner(1, alone, hf_dir, ParallelConfig(), OPTIONS, timeout_s=900)[0]
        for name, (processes, parallel) in context_parallel.LAYOUTS.items():
            traces = runner(processes, shared, hf_dir, parallel, OPTIONS, timeout_s=900)
            rows.append(f"| {name} | {processes} | {stage} | {worst(one, traces)} |")
            print(rows[-1], flush=True)
    return rows


def worst(one: Trace, traces: list[Trace]) -> str:
    """Take the figures of the rank that differs most from one process."""
    found = max((difference(one, trace) for trace in traces), key=lambda found: found.largest)
    return f"{found.loss:.1e} | {found.grad_norm:.1e} | {found.parameter:.1e}"


def page(rows: list[str], context_rows: list[str]) -> str:
    """Write the text of docs/parity.md."""
    return "\n".join(
        [
            "# Layout parity",
            "",
            f"Written by `python -m tests.helpers.parity_table` on {datetime.date.today()}; {MACHINE}.",
            "",
            (
                f"{STEPS} clipped AdamW steps of the whole SELF-GRPO loss (reference and old-policy passes, "
                "KL, entropy, importance"
            ),
            (
                f"weights) on {GROUPS} groups of {GROUP_SIZE} samples of 4 to 65 tokens, packed into "
                "micro-batches of at most 96 tokens, so"
            ),
            (
                "that groups straddle micro-batches and data-parallel ranks. A tiny Qwen3 in fp32, 4 layers, "
                "with a vocabulary of 131"
            ),
            (
                "that divides by no tensor-parallel size. Largest absolute difference of any rank to the run "
                "in one process; SP is"
            ),
            "sequence parallel, DO the distributed optimizer.",
            "",
            "| layout | processes | embeddings | loss | gradient norm | parameters |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "The same comparison is a test (`tests/megatron/test_parity.py`, and `make test-layouts` for",
            "untied embeddings and for",
            f"{', '.join(SLOW)}; bound 1e-6), with one more that only changes how samples",
            (
                "are dealt over micro-batches; bf16 has one of its own (`tests/megatron/test_bf16.py`). "
                "Dropout is refused everywhere."
            ),
            "",
            "## Context parallelism",
            "",
            (
                "It needs Transformer Engine's attention: a CPU refuses it, and on a GPU it is "
                "**unmeasured**. What the product adds (which"
            ),
            (
                "tokens a rank holds, weights and sums of the losses, reductions, shapes between stages) is "
                "compared all the same, below"
            ),
            "that refusal: the tests bring an attention that gathers keys and values over the context ranks",
            (
                f"(`tests/helpers/context_parallel.py`). {STEPS} steps as above, and supervised ones, in "
                "micro-batches of at most"
            ),
            (
                f"{OPTIONS.max_tokens} tokens, with {OPTIONS.long_prompts} samples more whose completions "
                "lie on one context rank alone;"
            ),
            "embeddings are tied.",
            "",
            "| layout | processes | loss function | loss | gradient norm | parameters |",
            "| --- | --- | --- | --- | --- | --- |",
            *context_rows,
            "",
            (
                "A test as well: `tests/megatron/test_context_parallel.py`, and `make test-layouts` for "
                "CP2 and those of four processes; bound 1e-6."
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
