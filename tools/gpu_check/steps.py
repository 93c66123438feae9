"""Lists the steps in order of their cost.

A broken installation shows in seconds, an error of the method in minutes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

LOGS = "its log"
ENVIRONMENT = "report.json, which holds `selfemo doctor`'s findings and the versions"


@dataclass(frozen=True)
class Machine:
    """The machine that the steps run on, and its directories."""

    device: str
    """"cuda" or "cpu"."""
    gpus: int
    root: Path
    """The checkout, which holds tests/ and tools/."""
    output: Path
    """Directory of logs, figures and the report."""
    model_dir: str = ""
    """A Qwen3 directory for the last step; if empty, a small one is initialised."""

    @property
    def processes(self) -> int:
        """Ranks of the steps that need a world.

        Two if there are two GPUs, so that weights travel between them.
        """
        return 2 if self.device == "cpu" else min(2, self.gpus)


@dataclass(frozen=True)
class Step:
    """One check, as a command with a deadline."""

    name: str
    question: str
    command: tuple[str, ...]
    deadline_s: int
    send_back: str
    """Files and facts that a maintainer needs to act on a failure."""
    environment: tuple[tuple[str, str], ...] = ()


def steps(machine: Machine) -> tuple[Step, ...]:
    """List all steps, as commands for this machine."""
    python, device = sys.executable, machine.device
    kernels = machine.output / "kernels"
    torchrun = (
        python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(machine.processes),
    )
    layout = f"parallel.tensor={machine.processes}"
    return (
        Step(
            name="doctor",
            question="Is the installation what the pins say, and do the libraries load?",
            command=(python, "-m", "selfemo.commands.main", "doctor", "--json", "--imports"),
            deadline_s=900,
            send_back=f"{LOGS}, and `nvidia-smi`",
        ),
        Step(
            name="kernels",
            question="Do the kernels agree with the fp64 oracle here, and how fast are they?",
            command=(python, "tools/gpu_kernels.py", "--device", device, "--output", str(kernels)),
            deadline_s=480,
            send_back="kernels/kernels.json; if Triton failed to compile, also the directory ~/.triton/cache",
        ),
        Step(
            name="parity",
            question="Does Transformer Engine's layer compute what the local one and transformers do?",
            command=(python, "-m", "tools.gpu_check.parity", "--device", device),
            deadline_s=900,
            send_back=f"{LOGS}, with NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=2 set for a second run of this step",
        ),
        Step(
            name="sync",
            question="Do weights arrive in vLLM: checksums, and greedy continuations equal to transformers'?",
            command=(*torchrun, "-m", "tools.gpu_check.sync", layout),
            deadline_s=1200,
            send_back=f"{LOGS}, and a second run with VLLM_CONFIGURE_LOGGING=1",
        ),
        Step(
            name="sleep",
            question="Does the engine give its memory back while it sleeps, and work after waking?",
            command=(*torchrun, "-m", "tools.gpu_check.sleep", layout),
            deadline_s=1200,
            send_back=f"{LOGS}: it holds the memory before, asleep and awake",
        ),
        Step(
            name="iteration",
            question="Does one SELF-GRPO iteration of a small Qwen3 run from start to export?",
            command=(
                *torchrun,
                "--no-python",
                python,
                "-m",
                "selfemo.commands.main",
                "train",
                *_iteration(machine, layout),
            ),
            deadline_s=1800,
            send_back=f"{LOGS}, and {machine.output / 'run'}/logs with metrics.jsonl; {ENVIRONMENT}",
        ),
    )


def _iteration(machine: Machine, layout: str) -> tuple[str, ...]:
    on_gpu = machine.device == "cuda"
    settings = (
        "--config",
        "examples/configs/smoke_cpu.yaml",
        f"output_dir={machine.output / 'run'}",
        layout,
        "corpus.name=everyday",
        "sft.steps=8",
        "iterations=1",
        "selfplay.seeds_per_iteration=4",
        "evaluation.limit=16",
    )
    gpu = (
        "train.dtype=bfloat16",
        "rollout.dtype=bfloat16",
        "rollout.enforce_eager=false",
        "parallel.distributed_optimizer=true",
    )
    model = (f"model.path={machine.model_dir}",) if machine.model_dir else ("model.head_dim=64",)
    return (*settings, *model, *(gpu if on_gpu else ()))
