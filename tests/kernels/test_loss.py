"""Test the loss on the CPU path against the fp64 oracle, and the properties that must hold exactly."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfemo.kernels import BatchCounts, grpo_loss, token_logprobs
from tests.helpers import kernel_oracle as oracle
from tests.helpers.kernel_cases import PRESETS, Case, make_case, run, truth


def part_of(case: Case, begin: int, end: int) -> Case:
    """Cut sequences begin to end - 1 out as a micro-batch; the counts stay those of the whole batch."""
    first, last = int(case.cu_seqlens[begin]), int(case.cu_seqlens[end])
    per_token = {
        name: getattr(case, name)[first:last]
        for name in ("logits_TV", "targets_T", "old_T", "ref_T", "rollout_T", "mask_T")
    }
    per_sequence = {name: getattr(case, name)[begin:end] for name in ("advantage_S", "weight_S")}
    return replace(case, **per_token, **per_sequence, cu_seqlens=case.cu_seqlens[begin : end + 1] - first)


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
    assert oracle.worst_of_scale(logits_TV.grad / 2, expected.dlogits_TV) <= (
        5e-6 if dtype == torch.float32 else 1e-2
    )


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


@pytest.mark.parametrize("name", PRESETS)
def test_on_policy_ratio_is_exactly_one_and_kl_exactly_zero(name: str) -> None:
    """Take old and reference logprobs of the same weights: the loss is minus the weighted
    advantages, clipped or not.
    """
    config = PRESETS[name]
    case = make_case(lengths=(3, 1, 20, 9), columns=3000, vocab_size=2999)
    own_T = token_logprobs(
        case.logits_TV,
        case.targets_T,
        mask_T=case.mask_T,
        vocab_size=case.vocab_size,
        temperature=config.temperature,
    ).logprob_T
    for old_T in (None, own_T):
        result = grpo_loss(
            case.logits_TV.clone().requires_grad_(),
            case.targets_T,
            case.cu_seqlens,
            config=config,
            advantage_S=case.advantage_S,
            old_logprob_T=old_T,
            ref_logprob_T=own_T,
            mask_T=case.mask_T,
            vocab_size=case.vocab_size,
        )
        assert float(result.metrics.ratio) == float(result.metrics.tokens) == float(case.mask_T.sum())
        assert float(result.metrics.kl) == 0.0
        assert float(result.metrics.clipped_low) == float(result.metrics.clipped_high) == 0.0
        assert torch.equal(result.logprob_T, own_T)


@pytest.mark.parametrize("name", PRESETS)
def test_gradient_matches_finite_differences(name: str) -> None:
    """Take finite differences of the oracle's loss in fp64 along random directions.

    That side uses neither a formula nor autograd.
    """
    config = PRESETS[name]
    case = make_case(lengths=(4, 2, 6), columns=40, vocab_size=37, temperature=config.temperature)
    logits_TV = case.logits_TV.clone().requires_grad_()
    run(case, config, logits_TV).loss.backward()
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        direction_TV = torch.randn(case.logits_TV.shape, generator=generator, dtype=torch.float64)
        step = 1e-6
        high, low = (
            truth(replace(case, logits_TV=case.logits_TV.double() + sign * step * direction_TV), config).loss
            for sign in (1, -1)
        )
        slope = float((high - low) / (2 * step))
        assert float((logits_TV.grad.double() * direction_TV).sum()) == pytest.approx(
            slope, rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("borders", [(0, 1, 2, 4), (0, 1, 2, 3, 4)], ids=["some together", "one by one"])
@pytest.mark.parametrize("name", PRESETS)
def test_microbatches_add_up_to_the_whole(name: str, borders: tuple[int, ...]) -> None:
    """Add up loss, gradient and metrics of micro-batches, of which one is a fully masked dummy.

    An empty data-parallel rank runs such a dummy.
    """
    config = PRESETS[name]
    case = make_case(lengths=(5, 1, 14, 17), temperature=config.temperature)
    logits_TV = case.logits_TV.clone().requires_grad_()
    whole = run(case, config, logits_TV)
    whole.loss.backward()
    pieces, gradients = [], []
    for begin, end in pairwise(borders):
        part = part_of(case, begin, end)
        part_TV = part.logits_TV.clone().requires_grad_()
        pieces.append(run(part, config, part_TV))
        pieces[-1].loss.backward()
        gradients.append(part_TV.grad)
    assert float(sum(piece.loss.detach() for piece in pieces)) == pytest.approx(
        float(whole.loss.detach()), rel=1e-6, abs=1e-8
    )
    assert torch.equal(torch.cat(gradients), logits_TV.grad)
    for field in fields(whole.metrics):
        join = max if field.name == "rollout_gap_max" else sum
        joined = join(float(getattr(piece.metrics, field.name)) for piece in pieces)
        assert joined == pytest.approx(float(getattr(whole.metrics, field.name)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_packed_equals_padded(name: str) -> None:
    """Pad every sequence on the right to one length and mask the padding: the batch is the same.

    The test above has each sequence alone.
    """
    config = PRESETS[name]
    case = make_case(lengths=(5, 1, 14, 17), temperature=config.temperature)
    packed_TV = case.logits_TV.clone().requires_grad_()
    packed = run(case, config, packed_TV)
    packed.loss.backward()
    longest, lengths = 20, case.cu_seqlens.diff().tolist()
    place_T = torch.cat([torch.arange(length) + s * longest for s, length in enumerate(lengths)])

    def spread(values: Tensor) -> Tensor:
        padded = torch.zeros(longest * len(lengths), *values.shape[1:], dtype=values.dtype)
        padded[place_T] = values
        return padded

    per_token = {
        name: spread(getattr(case, name))
        for name in ("logits_TV", "targets_T", "old_T", "ref_T", "rollout_T", "mask_T")
    }
    padded_case = replace(case, **per_token, cu_seqlens=torch.arange(len(lengths) + 1) * longest)
    padded_TV = padded_case.logits_TV.clone().requires_grad_()
    padded = run(padded_case, config, padded_TV)
    padded.loss.backward()
    assert float(padded.loss.detach()) == pytest.approx(float(packed.loss.detach()), rel=1e-6, abs=1e-8)
    assert torch.allclose(padded_TV.grad[place_T], packed_TV.grad, rtol=1e-6, atol=1e-9)
    assert float(padded_TV.grad.abs().sum()) == pytest.approx(float(packed_TV.grad.abs().sum()), rel=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_two_runs_agree_bitwise(name: str) -> None:
    config = PRESETS[name]
    case = make_case(temperature=config.temperature)
    runs = []
    for _ in range(2):
        logits_TV = case.logits_TV.clone().requires_grad_()
        result = run(case, config, logits_TV)
        result.loss.backward()
        runs.append((result.loss.detach(), result.logprob_T, result.entropy_T, logits_TV.grad))
    assert all(torch.equal(one, other) for one, other in zip(*runs))


@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_gradient_sums_to_zero_over_the_vocabulary(entropy_weight: float) -> None:
    """Check that the gradient has no component along a constant, which changes no probability."""
    case = make_case(shift=300.0)
    config = replace(PRESETS["grpo"], entropy_weight=entropy_weight)
    logits_TV = case.logits_TV.clone().requires_grad_()
    run(case, config, logits_TV).loss.backward()
    row_T = logits_TV.grad.double().sum(-1).abs()
    assert float(row_T.max()) <= 1e-6 * float(logits_TV.grad.abs().sum(-1).max())


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("on_policy", [False, True], ids=["off_policy", "on_policy"])
@pytest.mark.parametrize("name", PRESETS)
def test_fused_projection_equals_the_loss_of_its_logits(name: str, on_policy: bool, masked: bool) -> None:
    """Use chunks of 7 tokens, which cut through sequences."""
    config = PRESETS[name]
    case = make_case(temperature=config.temperature)
    case = case if masked else replace(case, mask_T=torch.ones_like(case.mask_T))
    generator = torch.Generator().manual_seed(3)
    hidden_TH, weight_VH = (
        torch.randn(37, 12, generator=generator),
        torch.randn(1003, 12, generator=generator),
    )
    logprob_T = token_logprobs(
        hidden_TH @ weight_VH.T, case.targets_T, vocab_size=990, temperature=config.temperature
    ).logprob_T
    near = {
        name: logprob_T + 0.2 * torch.randn(37, generator=generator)
        for name in ("old_T", "ref_T", "rollout_T")
    }
    case = replace(case, **near)
    results = []
    for fused in (True, False):
        h, w = hidden_TH.clone().requires_grad_(), weight_VH.clone().requires_grad_()
        result = run(
            case,
            config,
            None if fused else h @ w.T,
            on_policy,
            **({"hidden_TH": h, "weight_VH": w, "chunk_tokens": 7} if fused else {}),
        )
        (3.0 * result.loss).backward()
        metrics = torch.stack([getattr(result.metrics, field.name) for field in fields(result.metrics)])
        results.append((result.loss.detach(), result.logprob_T, result.entropy_T, metrics, h.grad, w.grad))
    (loss, *fused_results), (plain_loss, *plain_results) = results
    assert abs(float(loss - plain_loss)) <= 1e-7  # its terms are of order 0.1 and nearly cancel
    for fused_result, plain_result in zip(fused_results, plain_results):
        assert oracle.worst_of_scale(fused_result, plain_result) <= 2e-6


def test_fused_projection_adds_to_the_main_gradient() -> None:
    case = make_case(lengths=(4, 3), columns=30, vocab_size=30)
    hidden_TH, weight_VH = torch.randn(7, 5), torch.randn(30, 5).requires_grad_()
    run(case, PRESETS["grpo"], None, hidden_TH=hidden_TH, weight_VH=weight_VH).loss.backward()
    expected_VH, weight_VH.grad = weight_VH.grad, None
    main_VH = torch.full((30, 5), 2.0)
    run(
        case, PRESETS["grpo"], None, hidden_TH=hidden_TH, weight_VH=weight_VH, weight_main_grad_VH=main_VH
    ).loss.backward()
    assert weight_VH.grad is None
    assert torch.allclose(main_VH, expected_VH + 2)


def test_a_scaled_loss_cannot_go_with_a_main_gradient() -> None:
    """Refuse a loss scale together with a main gradient.

    The main gradient gets its share before backward: a later scale would be missing from it.
    """
    case = make_case(lengths=(4, 3), columns=30, vocab_size=30)
    hidden_TH, weight_VH = torch.randn(7, 5), torch.randn(30, 5).requires_grad_()
    main_VH = torch.zeros(30, 5)
    result = run(
        case, PRESETS["grpo"], None, hidden_TH=hidden_TH, weight_VH=weight_VH, weight_main_grad_VH=main_VH
    )
    with pytest.raises(RuntimeError, match="the loss may not be scaled"):
        (2 * result.loss).backward()


def test_a_broken_logprob_cannot_make_the_loss_infinite() -> None:
    """Clamp a log-ratio of 200, which gives no gradient."""
    logits_TV = torch.randn(4, 30).requires_grad_()
    result = grpo_loss(
        logits_TV,
        torch.arange(4),
        torch.tensor([0, 4]),
        config=PRESETS["self_grpo"],
        advantage_S=-torch.ones(1),
        old_logprob_T=torch.full((4,), -200.0),
        ref_logprob_T=torch.full((4,), 200.0),
    )
    result.loss.backward()
    assert bool(result.loss.isfinite())
    assert bool(logits_TV.grad.isfinite().all())


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    name=st.sampled_from(sorted(PRESETS)),
    on_policy=st.booleans(),
    chunk_tokens=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_any_packing_matches_the_oracle(
    lengths: list[int], name: str, on_policy: bool, chunk_tokens: int, seed: int
) -> None:
    """Draw lengths and masks at random, from logits and from hidden states with any chunk size."""
    config = PRESETS[name]
    case = make_case(
        lengths=tuple(lengths), columns=23, vocab_size=21, seed=seed, temperature=config.temperature
    )
    expected = truth(case, config, on_policy)
    # The output weight is the identity: the logits are the hidden states.
    hidden_TH = case.logits_TV.clone().requires_grad_()
    fused = run(
        case, config, None, on_policy, hidden_TH=hidden_TH, weight_VH=torch.eye(23), chunk_tokens=chunk_tokens
    )
    logits_TV = case.logits_TV.clone().requires_grad_()
    plain = run(case, config, logits_TV, on_policy)
    for result, leaf in ((fused, hidden_TH), (plain, logits_TV)):
        result.loss.backward()
        assert float(result.loss.detach()) == pytest.approx(float(expected.loss), rel=1e-6, abs=1e-6)
        assert float((leaf.grad.double() - expected.dlogits_TV).abs().max()) <= 5e-6 * max(
            float(expected.dlogits_TV.abs().max()), 0.01
        )
