"""Train on the loss from hidden states (train.fuse_output_layer): the steps equal those from
logits, which are never made.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from selfemo.config.schema import FUSE_FROM_BYTES, ParallelConfig, TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import LossConfig
from selfemo.megatron.learner import Learner
from tests.helpers import context_parallel
from tests.helpers.parity import (
    LEARNING_RATE,
    SHARED,
    Options,
    difference,
    learner,
    samples,
    three_sft_steps,
    three_steps,
)
from tests.helpers.tiny_model import save_tiny

BOUND = 1e-6
"""Bounds on the differences that layouts of tests/megatron/test_parity.py keep among each other."""
BF16_ULP = 2.0**-7
FUSED = Options(fuse="on")
LAYOUTS = {
    "TP1": (1, ParallelConfig()),
    "TP2": (2, ParallelConfig(tensor=2)),
    "TP2 +SP": (2, ParallelConfig(tensor=2, sequence_parallel=True)),
    "PP2": (2, ParallelConfig(pipeline=2)),
    "PP2 VPP2": (2, ParallelConfig(pipeline=2, virtual_pipeline=2)),
    "DP2 +DO": (2, ParallelConfig(distributed_optimizer=True)),
}
"""Name: (processes, layout).

The vocabulary is a prime: with TP2 one row of the output weight is padding.
"""
SLOW = ("TP2", "PP2")
"""Contained in other layouts."""


@pytest.fixture(
    scope="module", params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"]
)
def hf_dir(request, tmp_path_factory):
    return str(
        save_tiny(
            tmp_path_factory.mktemp("fused") / "model", "qwen3", request.param, torch.bfloat16, layers=4
        )
    )


@pytest.fixture(scope="module")
def from_logits(distributed, hf_dir):
    """Run one process that makes logits; returns the traces of (SELF-GRPO, SFT)."""
    yield tuple(
        distributed(1, steps, hf_dir, ParallelConfig(), timeout_s=240)[0]
        for steps in (three_steps, three_sft_steps)
    )
    distributed.close()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LAYOUTS]
)
def test_three_self_grpo_steps_are_those_from_logits(distributed, hf_dir, from_logits, name):
    """Compare reference pass, old-policy pass and policy step with entropy bonus.

    A tied weight has two gradients, of which one is fused.
    """
    processes, parallel = LAYOUTS[name]
    options = replace(SHARED, fuse="on") if name == "TP2 +SP" else FUSED
    for trace in distributed(processes, three_steps, hf_dir, parallel, options, timeout_s=240):
        assert difference(from_logits[0], trace).largest <= BOUND, difference(from_logits[0], trace)


@pytest.mark.long
@pytest.mark.parametrize("name", ["TP2 +SP", pytest.param("PP2", marks=pytest.mark.slow)])
def test_three_sft_steps_are_those_from_logits(distributed, hf_dir, from_logits, name):
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_sft_steps, hf_dir, parallel, FUSED, timeout_s=240):
        assert difference(from_logits[1], trace).largest <= BOUND, difference(from_logits[1], trace)


@pytest.mark.slow
def test_context_ranks_fuse_what_each_of_them_holds(distributed, hf_dir):
    """Run context ranks of which some hold no completion token of a micro-batch, and take part all
    the same.
    """
    processes, parallel = context_parallel.LAYOUTS["CP2"]
    runs = [replace(context_parallel.OPTIONS, fuse=fuse) for fuse in ("on", "off")]
    fused, plain = (
        distributed(processes, context_parallel.three_steps, hf_dir, parallel, run, timeout_s=240)
        for run in runs
    )
    assert difference(fused[0], plain[0]).largest <= BOUND, difference(fused[0], plain[0])


@pytest.mark.parametrize("hf_dir", [True], ids=["tied"], indirect=True)
@pytest.mark.parametrize("name", [pytest.param("TP2 +SP", marks=pytest.mark.slow), "DP2 +DO"])
def test_three_steps_in_bf16_stay_near_those_in_fp32(distributed, hf_dir, from_logits, name):
    """Use the model and the bounds of tests/megatron/test_bf16.py. An untied model has a test of its own."""
    processes, parallel = LAYOUTS[name]
    (wanted, _), options = from_logits, replace(FUSED, dtype="bfloat16")
    for trace in distributed(processes, three_steps, hf_dir, parallel, options, timeout_s=240):
        found = difference(wanted, trace)
        assert found.loss <= 0.02 * max(map(abs, wanted.losses)), found
        assert found.grad_norm <= 0.05 * max(wanted.grad_norms), found
        assert found.parameter <= BF16_ULP, found


@pytest.mark.parametrize(
    "hf_dir", [pytest.param(False, marks=pytest.mark.slow)], ids=["untied"], indirect=True
)
@pytest.mark.parametrize("steps", [three_steps, three_sft_steps])
@pytest.mark.parametrize("name", ["TP1", "TP2 +SP"])
def test_in_bf16_an_untied_output_layer_errs_as_the_one_that_makes_logits(
    distributed, hf_dir, from_logits, name, steps
):
    """Bound the distance of the two paths by a quarter of what bf16 costs the one with logits.

    Against fp32 both err by more than tests/megatron/test_bf16.py allows a tied model. The fused path makes
    the same products of the same bf16 numbers, so it may add next to nothing to that error.
    """
    processes, parallel = LAYOUTS[name]
    plain, fused = (
        distributed(processes, steps, hf_dir, parallel, Options(dtype="bfloat16", fuse=fuse), timeout_s=240)[
            0
        ]
        for fuse in ("off", "on")
    )
    error = difference(from_logits[steps is three_sft_steps], plain)
    between = difference(plain, fused)
    assert error.parameter > 1e-4, "bf16 rounds something"
    assert between.loss <= error.loss / 4, (between, error)
    assert between.grad_norm <= error.grad_norm / 4, (between, error)
    assert between.parameter <= error.parameter / 4, (between, error)


def _drawn(seed: int, vocab_size: int) -> list[TrainingSample]:
    rng = random.Random(seed)

    def one() -> TrainingSample:
        prompt, completion = (
            tuple(rng.randrange(vocab_size) for _ in range(rng.randint(1, most))) for most in (20, 40)
        )
        logprobs = tuple(rng.uniform(-6, -3) for _ in completion)
        return TrainingSample(prompt, completion, logprobs, rng.uniform(-2, 2), rng.choice((0.0, 0.5, 1.0)))

    return [one() for _ in range(rng.randint(1, 12))]


def _step(
    model: Learner, fuse: str, batch: list[TrainingSample], config: LossConfig
) -> tuple[float, list[torch.Tensor]]:
    """Return loss and clipped gradients of a step with learning rate 0.

    Old and reference logprobs are not the policy's.
    """
    model.train = replace(model.train, fuse_output_layer=fuse)
    plan = model.plan(batch)
    other = [logprob_N - 0.1 * torch.linspace(-1, 2, len(logprob_N)) for logprob_N in model.logprobs(plan)]
    stats = model.policy_step(batch, plan, config, 0.0, reference=other, old=other)
    return stats.step.loss, [
        parameter.main_grad.clone() for chunk in model.chunks for parameter in chunk.parameters()
    ]


def _worst_differences(hf_dir: str, seeds: int) -> dict[str, float]:
    """Find by loss the largest difference of the loss, and of a gradient as a share of the tensor's
    largest value.
    """
    losses = {
        name: LossConfig.preset(name, kl_beta=0.1, entropy_weight=0.01)
        for name in ("grpo", "dapo", "self_grpo", "gspo")
    }
    losses["dr_grpo"] = LossConfig.preset("dr_grpo", max_length=40)
    worst = dict.fromkeys(losses, 0.0)
    with learner(hf_dir, ParallelConfig(tensor=2)) as model:
        for name, config in losses.items():
            for seed in range(seeds):
                batch = _drawn(seed, model.architecture.vocab_size)
                (one, gradients), (other, others) = (
                    _step(model, fuse, batch, config) for fuse in ("on", "off")
                )
                shares = [
                    float((a - b).abs().max() / b.abs().max().clamp(min=1e-3))
                    for a, b in zip(gradients, others, strict=True)
                ]
                worst[name] = max(worst[name], abs(one - other), *shares)
    return worst


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_any_batch_has_the_same_loss_and_gradients(distributed, hf_dir, seeds):
    """Draw lengths, weights (all zero among them) and advantages; every loss, on two
    tensor-parallel ranks.
    """
    for worst in distributed(2, _worst_differences, hf_dir, seeds, timeout_s=240):
        assert max(worst.values()) <= 1e-5, worst


def _on_policy(hf_dir: str, fuse: str) -> tuple[float, float, int]:
    """Return the KL to an equal reference, the mean ratio, and how often the output layer made logits."""
    calls = []
    with learner(hf_dir, ParallelConfig(tensor=2), Options(fuse=fuse)) as model:
        model.chunks[-1].output_layer.register_forward_hook(lambda *_: calls.append(1))
        batch = samples(model.architecture.vocab_size)
        plan = model.plan(batch)
        config = LossConfig.preset("self_grpo", kl_beta=0.1)
        logprobs = model.logprobs(plan)
        stats = model.policy_step(batch, plan, config, LEARNING_RATE, reference=logprobs, old=logprobs)
        return stats.kl, stats.ratio_mean, len(calls)


def test_logits_are_never_made_and_on_policy_figures_are_exact(distributed, hf_dir):
    assert distributed(2, _on_policy, hf_dir, "on", timeout_s=240) == [(0.0, 1.0, 0)] * 2
    (kl, ratio, calls), _ = distributed(2, _on_policy, hf_dir, "off", timeout_s=240)
    assert (kl, ratio) == (0.0, 1.0)
    assert calls > 0


def test_auto_looks_at_the_bytes_of_a_micro_batch():
    assert [TrainConfig().fuses_output_layer(FUSE_FROM_BYTES + more) for more in (0, 1)] == [False, True]
    assert TrainConfig(fuse_output_layer="on").fuses_output_layer(1)
    assert not TrainConfig(fuse_output_layer="off").fuses_output_layer(FUSE_FROM_BYTES + 1)
