"""Take three clipped SELF-GRPO steps in any layout, for the parity tests and the parity table.

Batches are difficult on purpose: sequence lengths differ by an order of magnitude, micro-batches
are so small that every group straddles several of them and every data-parallel rank, and groups
have zero weights, old policies and a reference with a KL term.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist

from selfemo.config.layout import parallel_layout
from selfemo.config.schema import ParallelConfig, TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import LossConfig
from selfemo.megatron.device import select_device
from selfemo.megatron.learner import Learner
from selfemo.megatron.parallel import RankLayout, init_distributed, init_parallel, leave_parallel
from selfemo.models.architecture import read_architecture

STEPS = 3
GROUPS, GROUP_SIZE = 6, 4
MAX_LENGTH = 96
CLIP_GRAD = 0.25
"""Below every gradient norm of the three steps, so that each of them is clipped."""
LEARNING_RATE = 1e-2
ADAM_EPS = 1e-3
"""Large enough that Adam does not turn rounding in a gradient near 0 into a whole step.

It divides by the root of the squared gradient plus this.
"""

_PLAIN: dict[str, tuple[int, ParallelConfig]] = {
    "TP2": (2, ParallelConfig(tensor=2)),
    "PP2": (2, ParallelConfig(pipeline=2)),
    "PP2 VPP2": (2, ParallelConfig(pipeline=2, virtual_pipeline=2)),
    "DP2": (2, ParallelConfig()),
    "TP2 +SP": (2, ParallelConfig(tensor=2, sequence_parallel=True)),
    "TP2 PP2": (4, ParallelConfig(tensor=2, pipeline=2)),
    "TP2 DP2 +DO": (4, ParallelConfig(tensor=2, distributed_optimizer=True)),
    "TP2 PP2 +SP": (4, ParallelConfig(tensor=2, pipeline=2, sequence_parallel=True)),
}
LAYOUTS = _PLAIN | {
    f"{name} +recompute": (size, replace(parallel, recompute=True))
    for name, (size, parallel) in _PLAIN.items()
}
"""Name: (processes, layout)."""
SLOW = (
    *("TP2", "PP2", "DP2", "TP2 PP2", "TP2 PP2 +SP"),
    *("TP2 +recompute", "PP2 +recompute", "DP2 +recompute", "TP2 +SP +recompute"),
    *("TP2 PP2 +recompute", "TP2 DP2 +DO +recompute"),
)
"""Layouts that `make test` leaves to `make test-layouts`.

The others contain each kind of layout and of recomputation.
"""

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Options:
    """Settings of a learner of these tests beside its layout."""

    max_tokens: int = MAX_LENGTH
    """Cap on a micro-batch's tokens."""
    offload: bool = False
    temperature: float = 1.0
    dtype: Dtype = "float32"
    learning_rate: float = LEARNING_RATE
    long_prompts: int = 0
    """Number of samples beside the groups whose prompt is so long, and completion so short, that
    one piece holds it.

    Pieces are those into which context parallelism cuts a sequence.
    """
    share_prompts: bool = False
    fuse: Literal["auto", "on", "off"] = "auto"
    """train.fuse_output_layer; "auto" never fuses a model as small as these."""
    frozen_layers: int = 0
    frozen_cache_bytes: int = 0
    frozen_cache_dir: str = ""
    supervised: bool = False
    """Whether the policy step also learns from supervised examples, of different weights."""


DEFAULT = Options()
SHARED = Options(max_tokens=66, share_prompts=True)
"""Shared prompts, under a cap so low that half of the groups still straddle micro-batches and
data-parallel ranks.
"""


@dataclass(frozen=True)
class Trace:
    """The results of three steps on one rank."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    tensors: dict[str, torch.Tensor]
    """Full Hugging Face tensors after the last step."""


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences to the one-process run."""

    loss: float
    grad_norm: float
    parameter: float

    @property
    def largest(self) -> float:
        return max(self.loss, self.grad_norm, self.parameter)


def samples(vocab_size: int, long_prompts: int = 0) -> list[TrainingSample]:
    """Make GROUPS groups of GROUP_SIZE samples of very different lengths; one group has weight 0.

    See Options for `long_prompts`.
    """
    rng = random.Random(11)
    drawn = []
    for group in range(GROUPS):
        prompt = tuple(rng.randrange(vocab_size) for _ in range(rng.choice((3, 9, 40))))
        for _ in range(GROUP_SIZE):
            completion = tuple(rng.randrange(vocab_size) for _ in range(rng.choice((1, 2, 7, 25))))
            logprobs = tuple(rng.uniform(-6, -3) for _ in completion)
            drawn.append(TrainingSample(prompt, completion, logprobs, rng.uniform(-2, 2), float(group != 2)))
    for _ in range(long_prompts):
        prompt = tuple(rng.randrange(vocab_size) for _ in range(62))
        drawn.append(
            TrainingSample(
                prompt,
                (rng.randrange(vocab_size), rng.randrange(vocab_size)),
                (-5.0, -4.0),
                rng.uniform(-2, 2),
            )
        )
    return drawn


def train_config(options: Options) -> TrainConfig:
    return TrainConfig(
        dtype=options.dtype,
        clip_grad=CLIP_GRAD,
        adam_eps=ADAM_EPS,
        max_tokens_per_microbatch=options.max_tokens,
        weight_decay=0.1,
        offload_during_rollout=options.offload,
        share_prompts=options.share_prompts,
        fuse_output_layer=options.fuse,
        frozen_layers=options.frozen_layers,
        frozen_cache_bytes=options.frozen_cache_bytes,
        frozen_cache_dir=options.frozen_cache_dir,
    )


Enter = Callable[..., RankLayout]


@contextmanager
def learner(
    hf_dir: str, parallel: ParallelConfig, options: Options = DEFAULT, enter: Enter = init_parallel
) -> Iterator[Learner]:
    """Build a learner of a Hugging Face directory in a layout, on this rank.

    Leaves the layout at the end.
    """
    device = select_device()
    init_distributed(device, 120)
    layout = enter(parallel_layout(parallel, 1, dist.get_world_size()), device, seed=1)
    try:
        built = Learner(
            read_architecture(hf_dir),
            train_config(options),
            layout,
            device,
            max_length=MAX_LENGTH,
            temperature=options.temperature,
        )
        built.load_hf(hf_dir)
        yield built
    finally:
        leave_parallel()


def three_steps(
    hf_dir: str, parallel: ParallelConfig, options: Options = DEFAULT, enter: Enter = init_parallel
) -> Trace:
    """Take three clipped AdamW steps of the whole SELF-GRPO loss: reference pass, old-policy pass,
    importance weights.
    """
    with learner(hf_dir, parallel, options, enter) as model:
        batch = samples(model.architecture.vocab_size, options.long_prompts)
        plan = model.plan(batch)
        reference = model.snapshot()
        loss = LossConfig.preset(
            "self_grpo", kl_beta=0.1, entropy_weight=0.01, temperature=options.temperature
        )
        old = model.logprobs(plan)
        losses, norms = [], []
        taught = [replace(s, weight=0.2 + 0.1 * i) for i, s in enumerate(batch[::4])] * options.supervised
        kept = old  # before the first step the policy is the reference
        for step in range(STEPS):
            if step == 1:
                with model.weights_of(reference):
                    kept = model.logprobs(plan)
            stats = model.policy_step(batch, plan, loss, options.learning_rate, kept, old, supervised=taught)
            losses.append(stats.step.loss)
            norms.append(stats.step.grad_norm)
        return _trace(model, losses, norms)


def three_sft_steps(
    hf_dir: str, parallel: ParallelConfig, options: Options = DEFAULT, enter: Enter = init_parallel
) -> Trace:
    """Take three clipped AdamW steps of the supervised loss on the same samples."""
    with learner(hf_dir, parallel, options, enter) as model:
        batch = samples(model.architecture.vocab_size, options.long_prompts)
        stats = [model.sft_step(batch, options.learning_rate) for _ in range(STEPS)]
        return _trace(model, [step.loss for step in stats], [step.grad_norm for step in stats])


def _trace(model: Learner, losses: list[float], grad_norms: list[float]) -> Trace:
    return Trace(
        tuple(losses), tuple(grad_norms), {name: tensor.clone() for name, tensor in model.hf_tensors(1 << 20)}
    )


def difference(one: Trace, other: Trace) -> Difference:
    """Compute the largest differences between two runs."""
    return Difference(
        max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True)),
        max(abs(a - b) for a, b in zip(one.grad_norms, other.grad_norms, strict=True)),
        max(float((tensor - other.tensors[name]).abs().max()) for name, tensor in one.tensors.items()),
    )
