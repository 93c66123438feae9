"""Gradients of rows that many segments read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.megatron.shared_rows import gather_rows, sum_in_order, sum_sorted


def test_a_row_that_many_segments_read_has_a_gradient_rounded_once() -> None:
    """bf16 holds 8 bits: 300 gradients of 1/256 added one by one in it would stop at 1."""
    source = torch.zeros(2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    indices = torch.tensor([0] * 300 + [1])
    gather_rows(source, indices).backward(torch.full((301, 3, 4), 1 / 256, dtype=torch.bfloat16))
    assert source.grad is not None
    assert source.grad[0].unique().item() == torch.tensor(300 / 256).bfloat16().item()
    assert source.grad[1].unique().item() == 1 / 256


def test_in_fp32_gather_and_gradient_are_those_of_index_select_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(3)
    ours = torch.randn(7, 2, 5, generator=generator, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    indices = torch.randint(7, (40,), generator=generator)
    weights = torch.randn(40, 2, 5, generator=generator)
    for rows, source in ((gather_rows(ours, indices), ours), (theirs.index_select(0, indices), theirs)):
        (rows * weights).sum().backward()
        assert source.grad is not None
    assert ours.grad is not None
    assert ours.grad.equal(theirs.grad)


@settings(deadline=None, max_examples=50)
@given(indices=st.lists(st.integers(0, 5), min_size=1, max_size=30), seed=st.integers(0, 2**31))
def test_both_ways_to_sum_agree(indices: list[int], seed: int) -> None:
    grad = torch.randn(len(indices), 2, 3, generator=torch.Generator().manual_seed(seed))
    at = torch.tensor(indices)
    for dtype in (torch.float32, torch.bfloat16):
        one, other = (add(grad.to(dtype), at, 6) for add in (sum_in_order, sum_sorted))
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("add", [sum_in_order, sum_sorted], ids=["in order", "sorted"])
def test_a_row_that_nothing_reads_has_gradient_zero(add) -> None:
    summed = add(torch.ones(2, 1, 1), torch.tensor([0, 2]), 4)
    assert summed.flatten().tolist() == [1, 0, 1, 0]
