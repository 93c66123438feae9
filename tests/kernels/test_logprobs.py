"""Test logprob and entropy on the CPU path where softmax implementations are usually inexact."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from selfemo.kernels import token_logprobs
from selfemo.kernels.row_threads import set_num_threads
from tests.helpers import kernel_oracle as oracle


def check(logits_TV: Tensor, vocab_size: int | None = None, temperature: float = 1.0, seed: int = 0) -> None:
    """Compare forward and backward with the oracle, with random derivatives in logprob and entropy."""
    generator = torch.Generator().manual_seed(seed)
    tokens, columns = logits_TV.shape
    targets_T = torch.randint(0, vocab_size or columns, (tokens,), generator=generator)
    a_T, b_T = torch.randn(2, tokens, generator=generator)
    truth_TV = logits_TV.double().requires_grad_()
    logprob_T, entropy_T = oracle.distribution(truth_TV, targets_T, temperature, vocab_size)
    (logprob_T @ a_T.double() + entropy_T @ b_T.double()).backward()
    ours_TV = logits_TV.clone().requires_grad_()
    got = token_logprobs(ours_TV, targets_T, vocab_size=vocab_size, temperature=temperature)
    (got.logprob_T @ a_T + got.entropy_T @ b_T).backward()
    assert oracle.worst(got.logprob_T, logprob_T.detach()) <= 1e-6
    assert oracle.worst(got.entropy_T, entropy_T.detach()) <= 1e-6
    bound = 5e-6 if logits_TV.dtype == torch.float32 else 1e-2
    assert oracle.worst_of_scale(ours_TV.grad, truth_TV.grad) <= bound
    assert float(ours_TV.grad.double().sum(-1).abs().max()) <= (
        1e-5 if logits_TV.dtype == torch.float32 else 5e-2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [1, 2, 17, 1000, 4097])
def test_any_vocabulary_size(columns: int, dtype: torch.dtype) -> None:
    check((torch.randn(6, columns, generator=torch.Generator().manual_seed(1)) * 3).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_qwen_vocabulary_with_logits_around_minus_ten(dtype: torch.dtype) -> None:
    """Use logits near -10.

    Zeros in the tail of the last block would add exp(0) per missing column to sums of exp(-10).
    """
    check((torch.randn(3, 151_936, generator=torch.Generator().manual_seed(2)) - 10).to(dtype))
    check(
        (torch.randn(3, 151_936, generator=torch.Generator().manual_seed(2)) - 10).to(dtype),
        vocab_size=151_669,
        temperature=0.7,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("shift", [300.0, -300.0, 3e4])
def test_shifted_logits_cost_no_precision(shift: float, temperature: float) -> None:
    check(
        torch.randn(8, 1003, generator=torch.Generator().manual_seed(3)) * 3 + shift, temperature=temperature
    )


def test_confident_row_keeps_its_tiny_logprob_and_entropy() -> None:
    logits_TV = torch.full((1, 500), -12.0)
    logits_TV[0, 7] = 12.0
    got = token_logprobs(logits_TV, torch.tensor([7]))
    expected, entropy = oracle.distribution(logits_TV.double(), torch.tensor([7]), 1.0, None)
    assert float(got.logprob_T) == pytest.approx(float(expected), abs=1e-7)
    assert float(got.entropy_T) == pytest.approx(float(entropy), abs=1e-7)


def test_uniform_row_has_entropy_log_v() -> None:
    got = token_logprobs(torch.full((2, 151_936), -10.0), torch.tensor([0, 151_935]))
    assert got.entropy_T.tolist() == pytest.approx([math.log(151_936)] * 2, rel=1e-6)
    assert got.logprob_T.tolist() == pytest.approx([-math.log(151_936)] * 2, rel=1e-6)


def test_forbidden_tokens_at_minus_infinity() -> None:
    """Forbid tokens by -inf, as a sampler does.

    They have no probability and no gradient, and entropy is not NaN.
    """
    logits_TV = torch.randn(4, 60, generator=torch.Generator().manual_seed(4))
    reference_TV = logits_TV[:, :40].double().requires_grad_()
    logits_TV[:, 40:] = -math.inf
    targets_T = torch.tensor([0, 5, 39, 7])
    logprob_T, entropy_T = oracle.distribution(reference_TV, targets_T, 1.0, None)
    (logprob_T.sum() + entropy_T.sum()).backward()
    logits_TV.requires_grad_()
    got = token_logprobs(logits_TV, targets_T)
    (got.logprob_T.sum() + got.entropy_T.sum()).backward()
    assert oracle.worst(got.entropy_T, entropy_T.detach()) <= 1e-6
    assert oracle.worst_of_scale(logits_TV.grad[:, :40], reference_TV.grad) <= 5e-6
    assert bool((logits_TV.grad[:, 40:] == 0).all())


def test_padding_columns_take_no_probability_and_zero_gradient() -> None:
    logits_TV = torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
    logits_TV[:, 50:] = 1e4
    narrow = token_logprobs(logits_TV[:, :50].contiguous(), torch.arange(5))
    logits_TV.requires_grad_()
    padded = token_logprobs(logits_TV, torch.arange(5), vocab_size=50)
    assert torch.equal(padded.logprob_T, narrow.logprob_T)
    padded.logprob_T.sum().backward()
    assert bool((logits_TV.grad[:, 50:] == 0).all())


def test_masked_rows_are_neither_read_nor_differentiated() -> None:
    logits_TV = torch.randn(6, 30, generator=torch.Generator().manual_seed(6))
    mask_T = torch.tensor([True, False, True, True, False, True])
    logits_TV[~mask_T] = math.nan
    logits_TV.requires_grad_()
    got = token_logprobs(logits_TV, torch.arange(6), mask_T=mask_T)
    (got.logprob_T.sum() + got.entropy_T.sum()).backward()
    assert bool(got.logprob_T.isfinite().all())
    assert bool((got.logprob_T[~mask_T] == 0).all())
    assert bool((logits_TV.grad[~mask_T] == 0).all())
    assert bool((logits_TV.grad[mask_T] != 0).any())


def test_rows_of_a_wider_buffer() -> None:
    """Pass a slice, as Megatron does.

    The row stride exceeds the width, and the columns between stay untouched.
    """
    buffer = torch.randn(5, 100, generator=torch.Generator().manual_seed(7))
    whole = buffer.clone()
    view_TV = buffer[:, 20:80].requires_grad_()
    got = token_logprobs(view_TV, torch.arange(5, dtype=torch.int32))
    expected, _ = oracle.distribution(whole[:, 20:80].double(), torch.arange(5), 1.0, None)
    assert oracle.worst(got.logprob_T, expected) <= 1e-6
    got.logprob_T.sum().backward()
    assert torch.equal(buffer[:, :20], whole[:, :20])
    assert torch.equal(buffer[:, 80:], whole[:, 80:])


def test_second_backward_raises_instead_of_differentiating_a_gradient() -> None:
    logits_TV = torch.randn(3, 20).requires_grad_()
    loss = token_logprobs(logits_TV, torch.zeros(3, dtype=torch.int64)).logprob_T.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    set_num_threads(request.param)
    yield request.param
    set_num_threads(before)


def test_result_does_not_depend_on_other_rows_or_the_chunking(threads: int) -> None:
    """Compare logprobs under two splits bit by bit.

    Old logprobs come from another micro-batch split than new ones: only if they agree is the
    on-policy ratio exactly 1.
    """
    logits_TV = torch.randn(40, 40_000, generator=torch.Generator().manual_seed(8))  # several chunks of rows
    targets_T = torch.randint(0, 40_000, (40,), generator=torch.Generator().manual_seed(9))
    whole = token_logprobs(logits_TV, targets_T)
    for rows in (slice(0, 1), slice(3, 20), slice(17, 40)):
        part = token_logprobs(logits_TV[rows], targets_T[rows])
        assert torch.equal(part.logprob_T, whole.logprob_T[rows])
        assert torch.equal(part.entropy_T, whole.entropy_T[rows])


@pytest.mark.parametrize("masked", [False, True])
def test_hidden_states_give_the_same_as_their_logits(masked: bool) -> None:
    generator = torch.Generator().manual_seed(10)
    hidden_TH, weight_VH = torch.randn(23, 16, generator=generator), torch.randn(333, 16, generator=generator)
    targets_T = torch.randint(0, 330, (23,), generator=generator)
    mask_T = torch.rand(23, generator=generator) > 0.4 if masked else None
    results = []
    for fused in (True, False):
        h, w = hidden_TH.clone().requires_grad_(), weight_VH.clone().requires_grad_()
        source = {"hidden_TH": h, "weight_VH": w, "chunk_tokens": 5} if fused else {"logits_TV": h @ w.T}
        got = token_logprobs(targets_T=targets_T, mask_T=mask_T, vocab_size=330, temperature=1.3, **source)
        (got.logprob_T.sum() + 0.3 * got.entropy_T.sum()).backward()
        results.append((got.logprob_T.detach(), got.entropy_T.detach(), h.grad, w.grad))
    for fused_result, plain_result in zip(*results):
        assert oracle.worst_of_scale(fused_result, plain_result) <= 2e-6


def test_weight_gradient_goes_into_the_main_gradient() -> None:
    generator = torch.Generator().manual_seed(11)
    hidden_TH, weight_VH = (
        torch.randn(9, 8, generator=generator),
        torch.randn(40, 8, generator=generator).requires_grad_(),
    )
    targets_T = torch.arange(9)
    token_logprobs(targets_T=targets_T, hidden_TH=hidden_TH, weight_VH=weight_VH).logprob_T.sum().backward()
    expected_VH, weight_VH.grad = weight_VH.grad, None
    main_VH = torch.ones(40, 8)
    got = token_logprobs(
        targets_T=targets_T, hidden_TH=hidden_TH, weight_VH=weight_VH, weight_main_grad_VH=main_VH
    )
    got.logprob_T.sum().backward()
    assert weight_VH.grad is None
    assert torch.allclose(main_VH, expected_VH + 1)
