"""Lists the steps in the order of what they tell per minute.

A broken installation shows in seconds, an error of the method in minutes. The deadlines add up to 45 minutes.
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
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def flash(self) -> tuple[str, ...]:
        """Modules of bf16 attention where prompts are shared, and of megatron-core's local layer."""
        return ("flash_attn",) if self.on_gpu else ()

    @property
    def layer(self) -> tuple[str, ...]:
        """Modules of the layer that the trainer takes here, beside megatron-core's."""
        return ("transformer_engine",) if self.on_gpu else ()

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
    needs: tuple[str, ...] = ()
    """Modules without which the step is skipped: a rented machine has not all of them."""
    environment: tuple[tuple[str, str], ...] = ()


TRAINER = ("torch", "transformers", "megatron")
WHOLE = (*TRAINER, "vllm")


def steps(machine: Machine) -> tuple[Step, ...]:
    """List all steps, as commands for this machine."""
    return (*_alone(machine), *_in_a_world(machine))


def production(machine: Machine) -> tuple[str, ...]:
    """List the settings that examples/configs/qwen3_8b.yaml has and a small run has not.

    Transformer Engine's attention and fused rotary embedding, sequences split over ranks, one engine over all
    of them that sleeps and replays CUDA graphs, and checksums at every sync.
    """
    several = machine.processes > 1
    return (
        "train.share_prompts=false",
        f"parallel.sequence_parallel={str(several).lower()}",
        f"rollout.tensor_parallel={machine.processes}",
        "sync.checksum_every=1",
        *(("rollout.sleep=true", "rollout.enforce_eager=false") if machine.on_gpu else ()),
    )


def _alone(machine: Machine) -> tuple[Step, ...]:
    python, device = sys.executable, machine.device
    kernels = machine.output / "kernels"
    return (
        Step(
            name="doctor",
            question="Is the installation what the pins say, and do the libraries load?",
            command=(python, "-m", "selfemo.commands.main", "doctor", "--json", "--imports"),
            deadline_s=180,
            send_back=f"{LOGS}, and `nvidia-smi`",
            needs=("psutil", "pynvml", "typer", "rich", "packaging"),
        ),
        Step(
            name="kernels",
            question="Do the kernels agree with the fp64 oracle here, and how fast are they?",
            command=(python, "tools/gpu_kernels.py", "--device", device, "--output", str(kernels)),
            deadline_s=390,
            needs=("torch", "triton"),
            send_back="kernels/kernels.json; if Triton failed to compile, also the directory ~/.triton/cache",
        ),
        Step(
            name="parity",
            question="Does Transformer Engine's layer compute what the local one and transformers do?",
            command=(python, "-m", "tools.gpu_check.parity", "--device", device),
            deadline_s=240,
            needs=(*TRAINER, *machine.layer, *machine.flash),
            send_back=f"{LOGS}, with NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=2 set for a second run of this step",
        ),
    )


def _in_a_world(machine: Machine) -> tuple[Step, ...]:
    python = sys.executable
    torchrun = (
        python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(machine.processes),
    )
    layout = f"parallel.tensor={machine.processes}"
    train = (*torchrun, "--no-python", python, "-m", "selfemo.commands.main", "train")
    return (
        Step(
            name="sync",
            question="Do weights arrive in vLLM: checksums, and greedy continuations equal to transformers'?",
            command=(*torchrun, "-m", "tools.gpu_check.sync", layout),
            deadline_s=300,
            needs=(*WHOLE, *machine.layer),
            send_back=f"{LOGS}, and a second run with VLLM_CONFIGURE_LOGGING=1",
        ),
        Step(
            name="production-sync",
            question="Do they under the settings of a production run?",
            command=(*torchrun, "-m", "tools.gpu_check.sync", layout, *production(machine)),
            deadline_s=300,
            needs=(*WHOLE, *machine.layer),
            send_back=f"{LOGS}, and a second run with VLLM_CONFIGURE_LOGGING=1",
        ),
        Step(
            name="sleep",
            question="Does the engine give its memory back while it sleeps, and work after waking?",
            command=(*torchrun, "-m", "tools.gpu_check.sleep", layout),
            deadline_s=240,
            needs=(*WHOLE, *machine.layer),
            send_back=f"{LOGS}: it holds the memory before, asleep and awake",
        ),
        Step(
            name="iteration",
            question="Does one SELF-GRPO iteration of a small Qwen3 run from start to export?",
            command=(*train, *_iteration(machine, layout, "run")),
            deadline_s=450,
            needs=(*WHOLE, *machine.layer, *machine.flash),
            send_back=f"{LOGS}, and {machine.output / 'run'}/logs with metrics.jsonl; {ENVIRONMENT}",
        ),
        Step(
            name="production",
            question="Does it under the settings of a production run?",
            command=(*train, *_iteration(machine, layout, "production"), *production(machine)),
            deadline_s=600,
            needs=(*WHOLE, *machine.layer),
            send_back=f"{LOGS}, and {machine.output / 'production'}/logs with metrics.jsonl; {ENVIRONMENT}",
        ),
    )


def _iteration(machine: Machine, layout: str, run: str) -> tuple[str, ...]:
    settings = (
        "--config",
        "examples/configs/smoke_cpu.yaml",
        f"output_dir={machine.output / run}",
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
    return (*settings, *model, *(gpu if machine.on_gpu else ()))
