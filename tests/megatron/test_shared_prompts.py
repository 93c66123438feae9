"""Test that a prompt of several samples is computed once, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.schema import ParallelConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.packing import MicroBatch, pack, units
from tests.helpers.parity import Options, learner, samples
from tests.helpers.tiny_model import VOCAB_SIZE, save_tiny

CPU = torch.device("cpu")
ids = st.integers(1, 9)
groups = st.lists(
    st.tuples(
        st.lists(ids, min_size=1, max_size=6),
        st.lists(st.lists(ids, min_size=1, max_size=5), min_size=1, max_size=4),
    ),
    max_size=5,
)


def _batch(drawn: list[tuple[list[int], list[list[int]]]]) -> list[TrainingSample]:
    return [
        TrainingSample(tuple(prompt), tuple(completion))
        for prompt, completions in drawn
        for completion in completions
    ]


def _reads(batch: MicroBatch) -> list[tuple[list[int], list[int], int]]:
    """List (token ids, positions, predictions) that each predicting segment attends to, in order."""
    params = batch.packed_seq_params
    rows = params.key_rows if params.key_rows is not None else torch.arange(batch.token_ids_T.numel())
    keys = rows.split(params.key_bounds.diff().tolist())
    marks = batch.loss_mask_T.split(params.query_bounds.diff().tolist())
    return [
        (batch.token_ids_T[row].tolist(), batch.position_ids_T[row].tolist(), int(mark.sum()))
        for row, mark in zip(keys, marks)
        if mark.any()
    ]


@given(groups, st.sampled_from([1, 2]))
def test_every_sample_reads_its_own_prompt_and_completion(drawn, multiple_of):
    """Fail if a segment reads another group's prompt, starts at a wrong position, or predicts too
    few tokens.
    """
    batch = _batch(drawn)
    packed = pack(batch, range(len(batch)), multiple_of, CPU, share_prompts=True)
    whole = [(s.prompt_ids + s.completion_ids)[:-1] for s in batch]
    assert _reads(packed) == [
        (list(w), list(range(len(w))), len(s.completion_ids)) for w, s in zip(whole, batch)
    ]
    assert packed.token_ids_T.numel() % multiple_of == 0
    assert packed.target_ids_N.tolist() == [i for s in batch for i in s.completion_ids]
    assert int(packed.loss_mask_T.sum()) == packed.target_ids_N.numel()


def test_a_shared_prompt_is_held_once():
    batch = _batch([([1, 2, 3, 4, 5], [[6, 7], [8], [9, 9]])])
    assert pack(batch, range(3), 1, CPU, share_prompts=True).token_ids_T.tolist() == [
        1,
        2,
        3,
        4,
        5,
        6,
        5,
        5,
        9,
    ]
    assert pack(batch, range(3), 1, CPU).token_ids_T.numel() == 6 + 5 + 6


@given(groups, st.integers(11, 30), st.sampled_from([1, 2, 4]), st.booleans())
def test_units_partition_the_batch_in_order(drawn, max_tokens, parts, share):
    batch = _batch(drawn)
    dealt = units(batch, share, max_tokens, parts)
    assert [i for unit in dealt for i in unit.sample_indices] == list(range(len(batch)))
    for unit in dealt:
        assert unit.length_tokens <= max_tokens
        assert len({batch[i].prompt_ids for i in unit.sample_indices}) == 1
        packed = pack(batch, unit.sample_indices, 1, CPU, share_prompts=share)
        assert packed.token_ids_T.numel() <= unit.length_tokens
        assert share or len(unit.sample_indices) == 1


def test_a_group_with_a_prompt_for_each_view_shares_each_prompt():
    """Neighbours of one view share its prompt, in a unit of their own; fails if a group has one prompt."""
    batch = _batch([([1, 2, 3], [[7], [8]]), ([1, 2, 4], [[7], [9]]), ([5], [[8]])])
    assert [unit.sample_indices for unit in units(batch, True, 1000, 1)] == [(0, 1), (2, 3), (4,)]
    packed = pack(batch, range(5), 1, CPU, share_prompts=True)
    assert _reads(packed) == [
        (list(whole), list(range(len(whole))), 1)
        for whole in ((s.prompt_ids + s.completion_ids)[:-1] for s in batch)
    ]


def test_one_large_group_still_fills_every_rank():
    batch = _batch([([1] * 6, [[2] * 5] * 8)])
    assert len(units(batch, True, 1000, 4)) >= 4


def test_a_sample_longer_than_the_cap_is_named():
    with pytest.raises(UserError, match="sample 1 has 6 tokens"):
        units(_batch([([1], [[2], [3] * 5])]), True, 5, 1)


def _logprobs(hf_dir: str, share: bool) -> dict[int, torch.Tensor]:
    with learner(hf_dir, ParallelConfig(), Options(max_tokens=4096, share_prompts=share)) as one:
        plan = one.plan(samples(VOCAB_SIZE))
        parts = [
            (batch.sample_indices, logprobs.split(batch.completion_bounds.diff().tolist()))
            for batch, logprobs in zip(plan, one.logprobs(plan))
        ]
        return {
            index: values.clone() for indices, logprobs in parts for index, values in zip(indices, logprobs)
        }


def test_logprobs_do_not_depend_on_sharing(distributed, tmp_path):
    hf_dir = str(save_tiny(tmp_path / "model", "qwen3", True))
    alone, shared = (distributed(1, _logprobs, hf_dir, share)[0] for share in (False, True))
    assert alone.keys() == shared.keys()
    for index, expected in alone.items():
        torch.testing.assert_close(shared[index], expected, rtol=0, atol=2e-6)
