"""Split the vocabulary over real processes: every rank has the whole loss and its own columns' gradient."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.distributed as dist

from selfemo.kernels import LossConfig, LossResult, token_logprobs
from tests.helpers import kernel_oracle as oracle
from tests.helpers.distributed import DistributedRunner
from tests.helpers.kernel_cases import PRESETS, Case, make_case, run, truth

CASES: dict[str, dict[str, Any]] = {
    "even": {"columns": 1004, "vocab_size": 1004},
    "last ranks all padding": {"columns": 1000, "vocab_size": 251},
    "large logits": {"columns": 512, "vocab_size": 509, "shift": 300.0},
    "real vocabulary": {
        "lengths": (2, 1, 2),
        "columns": 151_936,
        "vocab_size": 151_669,
        "shift": -10.0,
        "scale": 1.0,
    },
}


def _shard_of(case: Case, group: dist.ProcessGroup) -> torch.Tensor:
    return case.logits_TV.chunk(group.size(), dim=1)[group.rank()].contiguous()


def _errors(dtype: torch.dtype) -> dict[str, float]:
    """Find on a rank the largest errors against the oracle, over cases and presets.

    They are those of loss, logprobs, entropies and gradient.
    """
    worst: dict[str, float] = {}
    group = dist.group.WORLD
    assert group is not None
    for name, shape in CASES.items():
        for preset in PRESETS if name == "even" else ("self_grpo",):
            config = PRESETS[preset]
            case = make_case(**shape, dtype=dtype, temperature=config.temperature)
            expected = truth(case, config)
            shard_TV = _shard_of(case, group).requires_grad_()
            result = run(case, config, shard_TV, tp_group=group)
            result.loss.backward()
            expected_TV = expected.dlogits_TV.chunk(group.size(), dim=1)[group.rank()]
            scale = float(expected.dlogits_TV.abs().max())
            found = {
                "loss": abs(float(result.loss.detach() - expected.loss))
                / max(1.0, abs(float(expected.loss))),
                "logprob": oracle.worst(result.logprob_T, expected.logprob_T.where(case.mask_T, 0.0)),
                "entropy": oracle.worst(result.entropy_T, expected.entropy_T.where(case.mask_T, 0.0)),
                "dlogits": float((shard_TV.grad.double() - expected_TV).abs().max()) / scale,
            }
            worst = {key: max(worst.get(key, 0.0), value) for key, value in found.items()}
    return worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sharded_vocabulary_matches_the_oracle(
    distributed: DistributedRunner, size: int, dtype: torch.dtype
) -> None:
    for worst in distributed(size, _errors, dtype):
        assert worst["loss"] <= 1e-6
        assert worst["logprob"] <= 1e-6
        assert worst["entropy"] <= 1e-6
        assert worst["dlogits"] <= (5e-6 if dtype == torch.float32 else 1e-2)


def _same_on_every_rank() -> list[torch.Tensor]:
    group = dist.group.WORLD
    assert group is not None
    case = make_case(columns=512, vocab_size=500)
    result = run(case, PRESETS["self_grpo"], _shard_of(case, group), tp_group=group)
    metrics = [getattr(result.metrics, field.name) for field in fields(result.metrics)]
    return [result.loss.detach(), result.logprob_T, result.entropy_T, *metrics]


def test_ranks_agree_bitwise(distributed: DistributedRunner) -> None:
    """Compare ranks bit by bit: optimizer steps are replicated, so that any difference would grow."""
    first, *others = distributed(4, _same_on_every_rank)
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other))


def _fused(
    preset: str, vocab_size: int
) -> tuple[LossResult, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Compute the loss and token_logprobs from a sharded output weight."""
    group = dist.group.WORLD
    assert group is not None
    case, hidden_TH, weight_VH = _projection_case(vocab_size)
    shard_VH = weight_VH.chunk(group.size())[group.rank()].clone().requires_grad_()
    hidden_TH.requires_grad_()
    result = run(
        case, PRESETS[preset], None, hidden_TH=hidden_TH, weight_VH=shard_VH, tp_group=group, chunk_tokens=9
    )
    result.loss.backward()
    gradients = (hidden_TH.grad.clone(), shard_VH.grad.clone())
    hidden_TH.grad = shard_VH.grad = None
    got = token_logprobs(
        targets_T=case.targets_T,
        hidden_TH=hidden_TH,
        weight_VH=shard_VH,
        vocab_size=case.vocab_size,
        tp_group=group,
        chunk_tokens=9,
    )
    (got.logprob_T.sum() + got.entropy_T.sum()).backward()
    return result.loss.detach(), *gradients, (hidden_TH.grad, shard_VH.grad)


def _projection_case(vocab_size: int) -> tuple[Case, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    hidden_TH, weight_VH = torch.randn(37, 12, generator=generator), torch.randn(400, 12, generator=generator)
    case = make_case(columns=400, vocab_size=vocab_size)
    return case, hidden_TH, weight_VH


@pytest.mark.parametrize("vocab_size", [390, 190], ids=["both ranks", "one rank all padding"])
@pytest.mark.parametrize("preset", ["self_grpo", "gspo", "dapo"])
def test_fused_projection_with_a_sharded_weight(
    distributed: DistributedRunner, preset: str, vocab_size: int
) -> None:
    """Compare three ways to the gradient: `dlogits_` in the same pass, in a second one, and exp(d)
    kept by `vocab_stats`.
    """
    case, hidden_TH, weight_VH = _projection_case(vocab_size)
    hidden_TH.requires_grad_()
    weight_VH.requires_grad_()
    whole = run(case, PRESETS[preset], hidden_TH @ weight_VH.T)
    whole.loss.backward()
    expected_loss_TH, expected_loss_VH = hidden_TH.grad, weight_VH.grad
    hidden_TH.grad = weight_VH.grad = None
    got = token_logprobs(hidden_TH @ weight_VH.T, case.targets_T, vocab_size=case.vocab_size)
    (got.logprob_T.sum() + got.entropy_T.sum()).backward()
    ranks = distributed(2, _fused, preset, vocab_size)
    for rank, (loss, dhidden_TH, dweight_VH, (dhidden_logprob_TH, dweight_logprob_VH)) in enumerate(ranks):
        assert float(loss) == pytest.approx(float(whole.loss.detach()), rel=1e-6)
        assert oracle.worst_of_scale(dhidden_TH, expected_loss_TH) <= 2e-6
        assert oracle.worst_of_scale(dweight_VH, expected_loss_VH.chunk(2)[rank]) <= 2e-6
        assert oracle.worst_of_scale(dhidden_logprob_TH, hidden_TH.grad) <= 2e-6
        assert oracle.worst_of_scale(dweight_logprob_VH, weight_VH.grad.chunk(2)[rank]) <= 2e-6


def _group_of_one() -> bool:
    """Use TP 1 inside a larger world: a group of one rank gives the same bits as no group."""
    group, _ = dist.new_subgroups(group_size=1)
    case = make_case(columns=300, vocab_size=299)
    config = LossConfig.preset("grpo", kl_beta=0.1)
    alone = run(case, config, case.logits_TV.clone().requires_grad_(), tp_group=group)
    none = run(case, config, case.logits_TV.clone().requires_grad_())
    return torch.equal(alone.loss, none.loss) and torch.equal(alone.logprob_T, none.logprob_T)


def test_group_of_one_rank_is_no_group(distributed: DistributedRunner) -> None:
    assert distributed(2, _group_of_one) == [True, True]
