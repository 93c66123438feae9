"""Takes three steps of the trainer with a small Qwen3 and compares them with figures recorded on a CPU.

    python -m tools.kernels.gpu.trainer --device cuda
    python -m tools.kernels.gpu.trainer --device cpu --record    writes trainer_figures.json anew

megatron-core's local layer in fp32 runs on either device, without Transformer Engine and flash-attn; on a
GPU the losses go through the compiled kernels. Weights and tokens are integers mixed by arithmetic, the
same on any machine and under any version of torch. tools/gpu_kernels.py starts it as a process of its own.

Exit status: 0 the figures agree, 1 they do not, 3 a package is not installed (one line says which).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

RECORDED = Path(__file__).with_name("trainer_figures.json")
LAYERS, VOCABULARY = 2, 499
LEARNING_RATE = 1e-3
ABSENT_STATUS = 3
Figures = dict[str, list[float]]
"""Groups of figures of one kind, by name."""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--record", action="store_true", help="write the figures instead of comparing them")
    options = parser.parse_args(arguments)
    try:
        found = figures()
    except ModuleNotFoundError as error:
        print(f"not run: needs {error.name}, not installed here")
        return ABSENT_STATUS
    if options.record:
        machine = f"{platform.machine()} CPU, torch {torch.__version__}"
        RECORDED.write_text(json.dumps({"recorded_on": machine, "figures": found}, indent=1) + "\n")
        print(f"{RECORDED} written")
        return 0
    told, is_near = compare(found, json.loads(RECORDED.read_text())["figures"])
    print(told)
    return 0 if is_near else 1


def figures() -> Figures:
    """Take the steps on the device that this process has.

    Raises:
        ModuleNotFoundError: megatron-core, or another package of the trainer, is not installed.
    """
    from selfemo.config.layout import Layout
    from selfemo.config.schema import TrainConfig
    from selfemo.grpo.samples import TrainingSample
    from selfemo.kernels import LossConfig
    from selfemo.megatron.device import select_device
    from selfemo.megatron.learner import Learner
    from selfemo.megatron.parallel import init_parallel
    from selfemo.models.architecture import Architecture

    # An eps larger than most gradients: a step then is no jump of their sign.
    train = TrainConfig(dtype="float32", adam_eps=1e-3, max_tokens_per_microbatch=256)
    device = select_device()
    if not dist.is_initialized():
        store = dist.HashStore()  # such a store needs no port
        dist.init_process_group(
            device.backend, store=store, rank=0, world_size=1, device_id=device.group_device
        )
    layout = init_parallel(Layout(), device, seed=1)
    architecture = Architecture(
        "qwen3", VOCABULARY, 128, 256, LAYERS, 4, 2, 32, 1e6, 1e-6, True, True, False, 128, "float32"
    )
    # The local layer, on this device's tensors.
    learner = Learner(architecture, train, layout, replace(device, kind="cpu"), 128, 1.0)
    parameters = [p for chunk in learner.chunks for p in chunk.parameters()]
    for index, parameter in enumerate(parameters):
        drawn = mixed(parameter.numel(), index).view(parameter.shape).to(parameter)
        parameter.data.copy_(1 + 0.1 * drawn if parameter.dim() == 1 else 0.1 * drawn)
    learner.optimizer.reload_model_params()
    begun = learner.snapshot()

    def ids(count: int, seed: int) -> tuple[int, ...]:
        return tuple(((mixed(count, seed) + 1) / 2 * (VOCABULARY - 1)).long().tolist())

    samples = [
        TrainingSample(
            prompt_ids=ids(5 + 9 * group, 1000 + group),
            completion_ids=ids(3 + 4 * place, 2000 + 10 * group + place),
            rollout_logprobs=(-6.0,) * (3 + 4 * place),
            advantage=float(place - 1),
        )
        for group in range(3)
        for place in range(3)
    ]
    plan = learner.plan(samples)
    reference = learner.logprobs(plan)
    first = learner.sft_step(samples, LEARNING_RATE)
    steps = [
        learner.policy_step(
            samples, plan, LossConfig(kl_beta=0.02, entropy_weight=0.01), LEARNING_RATE, reference, reference
        )
        for _ in range(2)
    ]
    moved = zip(begun, learner.snapshot(), strict=True)
    return {
        "logprobs": torch.cat([row.cpu() for row in reference]).tolist(),
        "losses": [first.loss, *(step.step.loss for step in steps)],
        "gradient norms": [first.grad_norm, *(step.step.grad_norm for step in steps)],
        "statistics": [v for s in steps for v in (s.kl, s.entropy, s.ratio_mean)],
        "weights moved": [float((after - before).norm()) for before, after in moved],
    }


def compare(found: Figures, wanted: Figures) -> tuple[str, bool]:
    """Compare every group with what rounding in fp32 explains; return a line, and whether all are near."""
    from tools.gpu_check.rounding import TIMES_EXPECTED, distance, expected_distance

    limit = TIMES_EXPECTED * expected_distance("float32", LAYERS, is_gradient=True)
    apart = {
        name: distance(torch.tensor(found[name]).double(), torch.tensor(wanted[name]).double())
        if len(found[name]) == len(wanted[name])
        else math.inf
        for name in wanted
    }
    line = ", ".join(f"{name} {value:.1e}" for name, value in apart.items())
    is_near = all(value <= limit for value in apart.values())
    return f"{line}; at most {limit:.1e} is rounding", is_near


def mixed(count: int, seed: int) -> torch.Tensor:
    """Return fp64 [count] numbers in [-1, 1), by integer arithmetic alone."""
    mask = (1 << 32) - 1
    value = (torch.arange(count, dtype=torch.int64) + (seed + 1) * 1_000_003) & mask
    for _ in range(3):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & mask
    return (value ^ (value >> 16)).double() / 2**31 - 1


if __name__ == "__main__":
    sys.exit(main())
