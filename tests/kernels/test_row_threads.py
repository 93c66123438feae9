"""Test chunks on threads: each is taken once, and the bits are the same for any number of threads.

Operators inside are serial, and torch's settings are left as they were.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from selfemo.kernels import token_logprobs
from selfemo.kernels.chunks import Rows
from selfemo.kernels.row_threads import on_threads, set_num_threads

CPU = torch.device("cpu")
CHUNKS = [slice(begin, begin + 1) for begin in range(50)]


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    set_num_threads(request.param)
    yield request.param
    set_num_threads(before)


def test_each_chunk_is_taken_once_by_a_serial_thread(threads: int) -> None:
    taken: list[Rows] = []
    settings: list[tuple[int, bool]] = []

    def work(chunks: Iterator[Rows]) -> None:
        settings.append((torch.get_num_threads(), torch.is_grad_enabled()))
        taken.extend(chunks)

    with torch.no_grad():
        on_threads(work, CHUNKS, CPU)
    assert sorted(chunk.start for chunk in taken if isinstance(chunk, slice)) == list(range(50))
    assert set(settings) == {(1, False)}
    assert torch.get_num_threads() == threads


def test_an_error_in_a_thread_reaches_the_caller(threads: int) -> None:
    def work(chunks: Iterator[Rows]) -> None:
        raise RuntimeError(f"at {next(chunks)}")

    with pytest.raises(RuntimeError, match="at slice"):
        on_threads(work, CHUNKS, CPU)
    assert torch.get_num_threads() == threads


def results(threads: int) -> tuple[Tensor, Tensor, Tensor]:
    before = torch.get_num_threads()
    set_num_threads(threads)
    logits_TV = torch.randn(9, 150_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = token_logprobs(logits_TV, torch.arange(9), mask_T=torch.arange(9) != 4)
    (got.logprob_T.sum() + got.entropy_T.sum()).backward()
    set_num_threads(before)
    assert logits_TV.grad is not None
    return got.logprob_T.detach(), got.entropy_T.detach(), logits_TV.grad


def test_the_number_of_threads_changes_no_bit() -> None:
    alone = results(1)
    for threads in (2, 3):
        assert all(torch.equal(one, other) for one, other in zip(alone, results(threads)))


def test_inference_mode_reaches_the_threads(threads: int) -> None:
    with torch.inference_mode():
        assert token_logprobs(torch.zeros(3, 40), torch.arange(3)).logprob_T.tolist() == pytest.approx(
            [-3.6888795] * 3
        )
