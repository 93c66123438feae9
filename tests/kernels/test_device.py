"""Test the kernels on the device that SELFEMO_DEVICE names ("cuda" or "cpu"), against the fp64
oracle.

gpu-check runs these tests. On a GPU they see the compiled Triton kernels, as no other test does:
layout, races, rounding of bf16 stores, real sizes. On a CPU they see the torch path, which shows
only that the cases are right.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace

import pytest
import torch

from selfemo.kernels import AdvantageConfig, LossConfig, group_advantages, token_logprobs
from tests.helpers import kernel_oracle as oracle
from tests.helpers.kernel_cases import Case, make_case
from tests.kernels.test_loss import PRESETS, run, truth

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("SELFEMO_DEVICE", "cpu")
LOGPROB_TOLERANCE = 1e-6 if DEVICE == "cpu" else 5e-6
"""A GPU's exp and log are approximations within a few units in the last place."""


def on_device(case: Case) -> Case:
    """Copy the case's tensors to the device; the oracle keeps the original."""
    tensors = {field.name: getattr(case, field.name) for field in fields(case)}
    return replace(
        case, **{name: value.to(DEVICE) for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    )


def check_loss(case: Case, config: LossConfig, on_policy: bool = False) -> torch.Tensor:
    """Compare loss, logprobs, entropies and gradient with the oracle; returns the gradient."""
    expected, moved = truth(case, config, on_policy), on_device(case)
    logits_TV = moved.logits_TV.clone().requires_grad_()
    result = run(moved, config, logits_TV, on_policy)
    (2.0 * result.loss).backward()
    assert abs(float(result.loss.detach()) - float(expected.loss)) <= LOGPROB_TOLERANCE * max(
        1.0, abs(float(expected.loss))
    )
    assert (
        oracle.worst(result.logprob_T.cpu(), expected.logprob_T.where(case.mask_T, 0.0)) <= LOGPROB_TOLERANCE
    )
    assert (
        oracle.worst(result.entropy_T.cpu(), expected.entropy_T.where(case.mask_T, 0.0)) <= LOGPROB_TOLERANCE
    )
    gradient_TV = logits_TV.grad.cpu()
    assert oracle.worst_of_scale(gradient_TV / 2, expected.dlogits_TV) <= (
        5e-6 if case.logits_TV.dtype == torch.float32 else 1e-2
    )
    return gradient_TV


@pytest.mark.parametrize("on_policy", [False, True], ids=["off_policy", "on_policy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name: str, dtype: torch.dtype, on_policy: bool) -> None:
    config = PRESETS[name]
    check_loss(make_case(dtype=dtype, temperature=config.temperature), config, on_policy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab_size", [151_936, 151_669], ids=["whole", "padded"])
def test_the_vocabulary_of_qwen3(vocab_size: int, dtype: torch.dtype) -> None:
    case = make_case(
        lengths=(20, 1, 43), columns=151_936, vocab_size=vocab_size, dtype=dtype, shift=-10.0, scale=1.0
    )
    gradient_TV = check_loss(case, LossConfig.preset("self_grpo", entropy_weight=0.01))
    assert bool((gradient_TV[:, vocab_size:] == 0).all())


def test_two_runs_agree_bitwise_and_on_policy_ratio_is_exactly_one() -> None:
    case = on_device(make_case(lengths=(300, 1, 500), columns=4097, vocab_size=4000))
    config = PRESETS["self_grpo"]
    results = [run(case, config, case.logits_TV.clone(), on_policy=True) for _ in range(2)]
    assert torch.equal(results[0].loss, results[1].loss)
    assert float(results[0].metrics.ratio) == float(results[0].metrics.tokens)
    own_T = token_logprobs(
        case.logits_TV.clone(),
        case.targets_T,
        mask_T=case.mask_T,
        vocab_size=4000,
        temperature=config.temperature,
    ).logprob_T
    assert (
        float(run(replace(case, ref_T=own_T), config, case.logits_TV.clone(), on_policy=True).metrics.kl)
        == 0.0
    )


@pytest.mark.parametrize("normalise", ["std", "none", "leave_one_out"])
def test_group_advantages(normalise: str) -> None:
    config = AdvantageConfig(normalise=normalise)  # type: ignore[arg-type]
    rewards_SC = torch.rand(90, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor(
        [1.0, 1.0, 100.0]
    )
    rewards_SC[3:11] = torch.tensor([10.1, 0.3, 7.0])
    group_ptr, weights_C = torch.tensor([0, 2, 3, 11, 80, 90]), torch.tensor([1.0, 0.2, 0.1])
    got = group_advantages(rewards_SC.to(DEVICE), group_ptr.to(DEVICE), weights_C.to(DEVICE), config=config)
    assert (
        oracle.worst(got.advantage_S.cpu(), oracle.advantages(rewards_SC, group_ptr, weights_C, config))
        <= LOGPROB_TOLERANCE
    )
    assert bool((got.advantage_S[2:11] == 0).all())
