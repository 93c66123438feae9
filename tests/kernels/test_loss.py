"""The loss on the CPU path against the fp64 oracle, and what must stay exactly true of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfemo.kernels import BatchCounts, LossConfig, LossResult, grpo_loss
from tests.kernels import oracle
from tests.kernels.cases import Case, make_case

PRESETS = {
    "grpo": LossConfig.preset("grpo"),
    "dr_grpo": LossConfig.preset("dr_grpo", max_length=50),
    "dapo": LossConfig.preset("dapo", dual_clip=1.2),
    "gspo": LossConfig.preset("gspo", clip_low=0.05, clip_high=0.05, kl_beta=0.1, kl_estimator="k2"),
    "self_grpo": LossConfig.preset("self_grpo", truncated_importance_cap=1.1, entropy_weight=0.01, temperature=1.3),
    "everything": LossConfig(
        clip_low=0.1, clip_high=0.3, dual_clip=1.5, kl_beta=0.3, kl_estimator="k1", truncated_importance_cap=1.2, entropy_weight=0.05
    ),
}


def run(case: Case, config: LossConfig, logits_TV: Tensor, on_policy: bool = False) -> LossResult:
    return grpo_loss(
        logits_TV,
        case.targets_T,
        case.cu_seqlens,
        config=config,
        advantage_S=case.advantage_S,
        sequence_weight_S=case.weight_S,
        old_logprob_T=None if on_policy else case.old_T,
        ref_logprob_T=case.ref_T,
        rollout_logprob_T=case.rollout_T,
        mask_T=case.mask_T,
        counts=case.counts,
        vocab_size=case.vocab_size,
    )


def truth(case: Case, config: LossConfig, on_policy: bool = False) -> oracle.Truth:
    return oracle.loss(
        case.logits_TV,
        case.targets_T,
        case.cu_seqlens,
        case.advantage_S,
        config,
        case.counts,
        weight_S=case.weight_S,
        old_T=None if on_policy else case.old_T,
        ref_T=case.ref_T,
        rollout_T=case.rollout_T,
        mask_T=case.mask_T,
        vocab_size=case.vocab_size,
    )


@pytest.mark.parametrize("on_policy", [False, True], ids=["off_policy", "on_policy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", PRESETS)
def test_loss_and_gradient_match_the_oracle(name: str, dtype: torch.dtype, on_policy: bool) -> None:
    config = PRESETS[name]
    case = make_case(dtype=dtype, temperature=config.temperature)
    expected = truth(case, config, on_policy)
    logits_TV = case.logits_TV.clone().requires_grad_()
    result = run(case, config, logits_TV, on_policy)
    (result.loss * 2.0).backward()  # Megatron scales the loss: the gradient must follow
    assert abs(float(result.loss.detach() - expected.loss)) <= 1e-6 * max(1.0, abs(float(expected.loss)))
    assert oracle.worst(result.logprob_T, expected.logprob_T.where(case.mask_T, 0.0)) <= 1e-6
    assert oracle.worst(result.entropy_T, expected.entropy_T.where(case.mask_T, 0.0)) <= 1e-6
    assert oracle.worst_of_scale(logits_TV.grad / 2, expected.dlogits_TV) <= (5e-6 if dtype == torch.float32 else 1e-2)


def test_gradient_is_written_over_the_logits() -> None:
    case = make_case()
    logits_TV = case.logits_TV.clone().requires_grad_()
    run(case, PRESETS["grpo"], logits_TV).loss.backward()
    assert logits_TV.grad is not None
    assert logits_TV.grad.data_ptr() == logits_TV.data_ptr()


def test_fully_masked_dummy_has_zero_loss_and_zero_gradient() -> None:
    logits_TV = torch.randn(3, 50).requires_grad_()
    result = grpo_loss(
        logits_TV,
        torch.zeros(3, dtype=torch.int64),
        torch.tensor([0, 3]),
        config=PRESETS["self_grpo"],
        advantage_S=torch.ones(1),
        ref_logprob_T=torch.zeros(3),
        mask_T=torch.zeros(3, dtype=torch.bool),
        counts=BatchCounts(sequences=4, tokens=40),
    )
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0
    assert bool((logits_TV.grad == 0).all())
    assert float(result.metrics.tokens) == 0.0
