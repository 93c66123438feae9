"""Train in bf16: close to fp32 in every layout, and steps too small for bf16 add up in fp32 master
weights.
"""

from __future__ import annotations

import pytest
import torch

from selfemo.config.schema import ParallelConfig
from selfemo.megatron import losses
from tests.helpers.parity import Options, difference, learner, samples, three_steps
from tests.helpers.tiny_model import save_tiny

BF16_ULP = 2.0**-7
"""Spacing of bf16 between 1 and 2, where the norms' weights are; below 1 it is half of that."""
SMALL_RATE = 1e-3
"""Bounds Adam's step: less than half a unit in the last place of any norm weight."""
SMALL_STEPS = 32
LAYOUTS = {
    "TP1": (1, ParallelConfig()),
    "TP2 +SP": (2, ParallelConfig(tensor=2, sequence_parallel=True)),
    "PP2 VPP2": (2, ParallelConfig(pipeline=2, virtual_pipeline=2)),
    "DP2 +DO": (2, ParallelConfig(distributed_optimizer=True)),
}


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    """Write a model whose norms are exact in bf16, so that both dtypes start from the same numbers."""
    return str(save_tiny(tmp_path_factory.mktemp("bf16") / "model", "qwen3", True, torch.bfloat16, layers=4))


@pytest.fixture(scope="module")
def in_fp32(distributed, hf_dir):
    return distributed(1, three_steps, hf_dir, ParallelConfig(), timeout_s=240)[0]


LATER = {"TP1": pytest.mark.slow, "PP2 VPP2": pytest.mark.slow, "TP2 +SP": pytest.mark.long}


@pytest.mark.parametrize("name", [pytest.param(name, marks=LATER.get(name, ())) for name in LAYOUTS])
def test_three_steps_in_bf16_stay_near_those_in_fp32(distributed, hf_dir, in_fp32, name):
    processes, parallel = LAYOUTS[name]
    for trace in distributed(
        processes, three_steps, hf_dir, parallel, Options(dtype="bfloat16"), timeout_s=240
    ):
        assert {tensor.dtype for tensor in trace.tensors.values()} == {torch.bfloat16}
        found = difference(in_fp32, trace)
        assert found.loss <= 0.02 * max(map(abs, in_fp32.losses)), found
        assert found.grad_norm <= 0.05 * max(in_fp32.grad_norms), found
        assert found.parameter <= BF16_ULP, found


def _logits_seen(hf_dir: str) -> set[tuple[torch.dtype, torch.dtype]]:
    """Return the dtypes of logits and of their gradient that the loss of an SFT step sees."""
    seen = set()
    with learner(hf_dir, ParallelConfig(), Options(dtype="bfloat16")) as model:
        batch = samples(model.architecture.vocab_size)

        def looking(micro_batch, _):
            inner = losses.sft_loss(micro_batch, model.context, len(batch))

            def loss(predictions):
                logits = predictions.logits_NV
                logits.register_hook(lambda gradient: seen.add((logits.dtype, gradient.dtype)))
                return inner(predictions)

            return loss

        model._forward_backward(model.plan(batch), looking)
    return seen


def test_logits_exist_once_in_bf16(distributed, hf_dir):
    """Megatron's Float16Module would make an fp32 copy of what the model returns."""
    (seen,) = distributed(1, _logits_seen, hf_dir, timeout_s=240)
    assert seen == {(torch.bfloat16, torch.bfloat16)}


def _small_steps(hf_dir: str, parallel: ParallelConfig, options: Options) -> dict[str, torch.Tensor]:
    """Return the norms' weights after many small SFT steps."""
    with learner(hf_dir, parallel, options) as model:
        for _ in range(SMALL_STEPS):
            model.sft_step(samples(model.architecture.vocab_size)[:8], SMALL_RATE)
        return {name: tensor.float() for name, tensor in model.hf_tensors(1 << 20) if "norm" in name}


@pytest.fixture(scope="module")
def small_steps_in_fp32(distributed, hf_dir):
    return distributed(1, _small_steps, hf_dir, ParallelConfig(), Options(), timeout_s=240)[0]


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param("TP2 +SP", marks=pytest.mark.slow), "DP2 +DO"])
def test_steps_below_bf16_resolution_add_up(distributed, hf_dir, small_steps_in_fp32, name):
    processes, parallel = LAYOUTS[name]
    wanted = small_steps_in_fp32
    with_masters = distributed(
        processes, _small_steps, hf_dir, parallel, Options(dtype="bfloat16"), timeout_s=240
    )[0]
    start = distributed(1, _start, hf_dir, timeout_s=240)[0]
    far = torch.cat([(wanted[name] - start[name]).abs() > BF16_ULP for name in start])
    moved = torch.cat([with_masters[name] != start[name] for name in start])
    error = torch.cat([(with_masters[name] - wanted[name]).abs() for name in start])
    assert far.sum() > 50
    assert moved[far].float().mean() > 0.95
    assert error.max() <= BF16_ULP


def _start(hf_dir: str) -> dict[str, torch.Tensor]:
    with learner(hf_dir, ParallelConfig()) as model:
        return {name: tensor.float().clone() for name, tensor in model.hf_tensors(1 << 20) if "norm" in name}
