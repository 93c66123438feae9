"""Measures real runs over local processes: the whole job under torchrun, read back from its metrics.

The model is untrained (no SFT), so nearly every completion runs to its cap: lengths are alike in all
runs, and so is the work per sample.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from selfemo.common.errors import UserError
from selfemo.config.checks import planned_architecture
from selfemo.config.layout import Layout, layout_of
from selfemo.config.load import load_config
from selfemo.config.schema import RunConfig
from selfemo.models.architecture import read_architecture
from selfemo.planning.sync import sync_bytes
from tools.scaling.rows import Row, Study

CONFIG = Path("examples/configs/smoke_cpu.yaml")
ITERATIONS = 4
WARM_UP_ITERATIONS = 1
STRONG_OPENINGS = 16
WEAK_OPENINGS = 8
"""Openings per process."""
RUN_TIMEOUT_S = 3600


def measure(process_counts: Sequence[int], directory: Path, say: Any = print) -> list[Row]:
    """Measure both studies. A run that serves both is made once.

    Raises:
        UserError: a run failed; quotes the end of its output.
    """
    rows, done = [], {}
    studies: tuple[Study, ...] = ("strong", "weak")
    for study in studies:
        for processes in process_counts:
            openings = STRONG_OPENINGS if study == "strong" else WEAK_OPENINGS * processes
            if (processes, openings) not in done:
                say(f"measuring {processes} process(es), {openings} openings per iteration")
                done[processes, openings] = run(processes, openings, directory / f"{processes}x{openings}")
            rows.append(row_of(done[processes, openings], processes, study))
    return rows


def overrides(processes: int, openings: int, output: Path) -> list[str]:
    """Return the settings in which the runs differ from the demo.

    They are sizes, and they switch off the work that is not repeated in every iteration.
    """
    return [
        f"output_dir={output}",
        "corpus.name=everyday",
        f"parallel.tensor={min(2, processes)}",
        f"selfplay.seeds_per_iteration={openings}",
        f"iterations={ITERATIONS}",
        "sft.steps=0",
        "evaluation.limit=1",
        "sync.verify_every=0",
        "sync.checksum_every=0",
        "timeout_s=1800",
    ]


def run(processes: int, openings: int, output: Path) -> Path:
    """Run the job under torchrun, one thread per process. A finished run is not run again."""
    if (output / "summary.json").exists():
        return output
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "--no-python",
    ]
    command = [
        *torchrun,
        sys.executable,
        "-m",
        "selfemo.commands.main",
        "train",
        "--config",
        str(CONFIG),
        *overrides(processes, openings, output),
    ]
    before = os.getloadavg()[0]
    result = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if result.returncode:
        raise UserError(f"a run of {processes} process(es) failed: {_reason(result.stderr or result.stdout)}")
    (output / "load.json").write_text(json.dumps({"before": before, "after": os.getloadavg()[0]}))
    return output


def row_of(output: Path, processes: int, study: Study) -> Row:
    """Return the medians of a run's iterations, without the first, which warms up."""
    config = load_config(output / "config.yaml")
    events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    iterations = [event for event in events if event["event"] == "iteration"][WARM_UP_ITERATIONS:]
    sync = [event for event in events if event["event"] == "sync"][-1]
    load = json.loads((output / "load.json").read_text())
    layout = layout_of(config, 1, processes)
    # A run reports the bytes of one copy of the weights; copies do the same at the same time.
    sync_total = sync["received_bytes"] * layout.weight_copies

    def seconds(phase: str) -> float:
        return float(median(event["seconds"][phase] for event in iterations))

    step_s = float(median(sum(event["seconds"].values()) for event in iterations))
    tokens, samples = (
        sum(event[key] for event in iterations) / len(iterations) for key in ("tokens", "samples")
    )
    return Row(
        kind="measured",
        study=study,
        hardware=f"CPU, {psutil.cpu_count(logical=False) or os.cpu_count()} cores",
        algorithm="SELF-GRPO",
        model=_model_name(config, output),
        policy_lag=0,
        mean_tokens=tokens / samples,
        max_tokens=max(
            event[f"completion_tokens_max_{role}"]
            for event in iterations
            for role in ("recognizer", "responder")
        ),
        gpus=processes,
        groups=round(sum(event["groups"] for event in iterations) / len(iterations)),
        samples=round(samples),
        generation_layout=f"TP{layout.engine_tensor} x {layout.replicas}",
        training_layout=training_label(layout),
        tokens_per_s_per_gpu=tokens / step_s / processes,
        step_s=step_s,
        generate_s=seconds("rollout"),
        logprob_s=None,
        train_s=seconds("train"),
        sync_s=seconds("sync"),
        other_s=seconds("reward"),
        sync_bytes=sync_total,
        planned_sync_bytes=_planned_sync_bytes(config, layout, output, sync["path"]),
        note=_note(processes, load),
    )


def training_label(layout: Layout) -> str:
    """Return the training layout, such as "TP2 DP2", without the engine."""
    return layout.label.split(",")[0]


def _reason(output: str) -> str:
    """Return a run's own line about a failure; torchrun's report around it says less."""
    lines = output.strip().splitlines() or ["no output"]
    return next((line.removeprefix("selfemo: ") for line in lines if line.startswith("selfemo: ")), lines[-1])


def _planned_sync_bytes(config: RunConfig, layout: Layout, output: Path, path: str) -> int:
    planned = sync_bytes(
        read_architecture(output / "model-initial"), layout, config.rollout.dtype, config.train.dtype
    )
    return planned.direct if path == "direct" else planned.checkpoint


def _model_name(config: RunConfig, output: Path) -> str:
    shape = planned_architecture(config.model)
    weights = (output / "model" / "model.safetensors").stat().st_size / 4
    return f"initialised Qwen3, {shape.num_layers} layers, {weights / 1e6:.1f} M"


def _note(processes: int, load: dict[str, float]) -> str:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    told = [f"load average {load['before']:.0f} before, {load['after']:.0f} after"]
    if processes > cores:
        told.insert(0, f"{processes} processes oversubscribe {cores} cores")
    return "; ".join(told)
