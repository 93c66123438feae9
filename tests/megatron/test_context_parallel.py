"""Test context parallelism.

Sequences are cut as megatron-core and Transformer Engine do, and steps equal one process's.
Attention over the pieces is Transformer Engine's, on a GPU; here tests/helpers/context_parallel.py
stands in for it, and the CPU's refusal is avoided.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from selfemo.common.errors import UserError
from selfemo.config.layout import Layout
from selfemo.config.schema import ParallelConfig
from selfemo.kernels import LossConfig
from selfemo.megatron.checkpoint import TensorWrite, read_tensors
from selfemo.megatron.context import ContextShare
from selfemo.megatron.device import select_device
from selfemo.megatron.packing import MicroBatch, balance_by_tokens, pack
from selfemo.megatron.parallel import enter_layout, init_distributed, init_parallel
from selfemo.megatron.step_stats import NOT_FIGURES, PolicyStats
from tests.helpers import parity
from tests.helpers.context_parallel import (
    LAYOUTS,
    OPTIONS,
    SLOW,
    gathered_attention,
    logprobs,
    positions_held,
    three_sft_steps,
    three_steps,
)
from tests.helpers.parity import Enter, Trace, difference, learner, samples
from tests.helpers.tiny_model import VOCAB_SIZE, save_tiny

BOUND = 1e-6


def _packed(
    indices: list[int] | tuple[int, ...], size: int, tensor: int = 1, min_tokens: int = 0
) -> list[MicroBatch]:
    """Pack the batch for all context ranks."""
    batch, device = samples(VOCAB_SIZE, OPTIONS.long_prompts), torch.device("cpu")
    return [
        pack(batch, indices, tensor, device, min_tokens, ContextShare(size, rank)) for rank in range(size)
    ]


@pytest.mark.parametrize(("size", "tensor"), [(1, 1), (2, 1), (2, 3), (3, 2), (4, 4)])
def test_the_parts_of_all_ranks_are_every_sequence_once(size, tensor):
    batch, indices = samples(VOCAB_SIZE, OPTIONS.long_prompts), [7, 0, 3, 24, 12, 19]
    parts = _packed(indices, size, tensor)
    bounds = parts[0].packed_seq_params.cu_seqlens_q
    assert all(part.packed_seq_params.cu_seqlens_q.equal(bounds) for part in parts)
    whole_T = torch.full((int(bounds[-1]),), -1)
    target_T = torch.full_like(whole_T, -1)
    for rank, part in enumerate(parts):
        assert len(part.token_ids_T) * size == bounds[-1]
        assert len(part.token_ids_T) % tensor == 0
        starts, local = bounds.tolist(), 0
        at_T = torch.empty_like(part.token_ids_T)
        for start, end in pairwise(starts):
            held = positions_held(size, rank, end - start)
            assert part.position_ids_T[local : local + len(held)].equal(held)
            at_T[local : local + len(held)] = start + held
            local += len(held)
        assert (whole_T[at_T] == -1).all()
        whole_T[at_T] = part.token_ids_T
        target_T[at_T[part.loss_mask_T]] = part.target_ids_N
    for index, start, end in zip(indices, bounds.tolist(), bounds.tolist()[1:]):
        sample = batch[index]
        inputs, end_of_prompt = (
            (sample.prompt_ids + sample.completion_ids)[:-1],
            start + len(sample.prompt_ids) - 1,
        )
        assert end - start - len(inputs) < (2 * size if size > 1 else 1)
        assert whole_T[start:end].tolist() == [*inputs, *[0] * (end - start - len(inputs))]
        assert target_T[end_of_prompt : start + len(inputs)].tolist() == list(sample.completion_ids)
    assert int((target_T >= 0).sum()) == sum(len(batch[index].completion_ids) for index in indices)


def test_the_cut_is_transformer_engines():
    """Follow the example in the docstring of `attn_forward_func_with_cp`, version 2.11.0.

    It has sequences of 8 and 4 tokens over two ranks.
    """
    first, second = (ContextShare(2, rank) for rank in range(2))
    assert [first.positions(8), first.positions(4)] == [[0, 1, 6, 7], [0, 3]]
    assert [second.positions(8), second.positions(4)] == [[2, 3, 4, 5], [1, 2]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_rank_knows_which_completion_tokens_it_holds(size):
    """Check `target_places` by hand: losses take rollout logprobs and weights at these places."""
    batch, indices = samples(VOCAB_SIZE, OPTIONS.long_prompts), [7, 0, 3, 24, 12, 19]
    seen: dict[int, list[int]] = {index: [] for index in indices}
    for part in _packed(indices, size):
        assert part.completion_bounds.diff().tolist() == [len(places) for places in part.target_places]
        assert part.completion_tokens_S.tolist() == [
            len(batch[index].completion_ids) for index in part.sample_indices
        ]
        assert 0 not in part.completion_bounds.diff().tolist()
        expected = [
            batch[index].completion_ids[place]
            for index, here in zip(part.sample_indices, part.target_places)
            for place in here
        ]
        assert part.target_ids_N.tolist() == expected
        for index, places in zip(part.sample_indices, part.target_places):
            seen[index] += places
    assert {index: sorted(places) for index, places in seen.items()} == {
        index: list(range(len(batch[index].completion_ids))) for index in indices
    }


def test_filling_reaches_the_asked_length_on_every_rank():
    longest = len(_packed([7, 0, 3], 2, tensor=4)[0].token_ids_T)
    for part in [
        *_packed([1], 2, tensor=4, min_tokens=longest),
        *_packed([], 2, tensor=4, min_tokens=longest),
    ]:
        assert len(part.token_ids_T) == longest


def test_transformer_engine_is_told_padded_bounds_only_where_it_needs_them():
    """Pass padded bounds under context parallelism only.

    Transformer Engine asserts them there, and gives up FlashAttention wherever they differ from the
    plain ones.
    """
    alone, shared = _packed([7, 0], 1)[0].packed_seq_params, _packed([7, 0], 2)[0].packed_seq_params
    assert alone.cu_seqlens_q_padded is None
    assert shared.cu_seqlens_q_padded.equal(shared.cu_seqlens_q)
    assert shared.cu_seqlens_kv_padded.equal(shared.cu_seqlens_kv)
    assert shared.max_seqlen_q == int(shared.cu_seqlens_q.diff().max())
    assert (shared.cu_seqlens_q % 4 == 0).all()


def test_the_batch_is_one_that_hurts():
    """Check the batch: completions on one rank alone, completions cut in two, and a rank without
    completion tokens.
    """
    bins = balance_by_tokens(
        [sample.length_tokens for sample in samples(VOCAB_SIZE, OPTIONS.long_prompts)], OPTIONS.max_tokens, 1
    )
    parts = [_packed(members, 2) for members in bins]
    assert any(not part.sample_indices for ranks in parts for part in ranks)
    assert any(set(first.sample_indices) & set(second.sample_indices) for first, second in parts)
    assert any(
        set(first.sample_indices) ^ set(second.sample_indices)
        for first, second in parts
        if second.sample_indices
    )


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory, distributed):
    """Write the model.

    End the ranks afterwards, since hooks of Megatron's DDP keep each learner's groups.
    """
    yield str(save_tiny(tmp_path_factory.mktemp("context") / "model", "qwen3", True, layers=4))
    distributed.close()


@pytest.fixture(scope="module")
def policy_trace(distributed, hf_dir) -> Trace:
    return distributed(1, parity.three_steps, hf_dir, ParallelConfig(), OPTIONS, timeout_s=240)[0]


@pytest.fixture(scope="module")
def sft_trace(distributed, hf_dir) -> Trace:
    return distributed(1, parity.three_sft_steps, hf_dir, ParallelConfig(), OPTIONS, timeout_s=240)[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LAYOUTS]
)
def test_three_self_grpo_steps_are_those_of_one_process(distributed, hf_dir, policy_trace, name):
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_steps, hf_dir, parallel, OPTIONS, timeout_s=240):
        assert difference(policy_trace, trace).largest <= BOUND, difference(policy_trace, trace)


@pytest.mark.long
@pytest.mark.parametrize("name", ["CP2", pytest.param("CP2 TP2 +SP", marks=pytest.mark.slow)])
def test_three_sft_steps_are_those_of_one_process(distributed, hf_dir, sft_trace, name):
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_sft_steps, hf_dir, parallel, OPTIONS, timeout_s=240):
        assert difference(sft_trace, trace).largest <= BOUND, difference(sft_trace, trace)


def test_the_logprobs_of_all_ranks_are_those_of_one_process(distributed, hf_dir):
    one = distributed(1, logprobs, hf_dir, ParallelConfig(), OPTIONS, timeout_s=240)[0]
    ranks = distributed(2, logprobs, hf_dir, ParallelConfig(context=2), OPTIONS, timeout_s=240)
    assert ranks[0].keys() | ranks[1].keys() == one.keys()
    assert not ranks[0].keys() & ranks[1].keys()
    assert len(one) == sum(len(sample.completion_ids) for sample in samples(VOCAB_SIZE, OPTIONS.long_prompts))
    for found in ranks:
        for place, logprob in found.items():
            assert logprob == pytest.approx(one[place], abs=BOUND)


PRESETS = {
    "grpo": LossConfig.preset("grpo", entropy_weight=0.01),
    "dapo": LossConfig.preset("dapo", kl_beta=0.1, truncated_importance_cap=1.0),
    "dr_grpo": LossConfig.preset("dr_grpo", kl_beta=0.1, max_length=25),
}
"""One preset for each way to average over tokens."""
OLD_LOGPROB = -4.9
"""Near ln(1 / vocabulary), so that ratios are on both sides of 1."""


def _statistics(hf_dir: str, parallel: ParallelConfig, enter: Enter) -> list[PolicyStats]:
    """Take a step of each preset with learning rate 0; returns the reported statistics."""
    with gathered_attention(), learner(hf_dir, parallel, OPTIONS, enter) as model:
        batch = samples(model.architecture.vocab_size, OPTIONS.long_prompts)
        plan = model.plan(batch)
        fixed = [torch.full_like(logprob_N, OLD_LOGPROB) for logprob_N in model.logprobs(plan)]
        return [
            model.policy_step(batch, plan, loss, 0.0, reference=fixed, old=fixed) for loss in PRESETS.values()
        ]


def _one(hf_dir: str) -> list[PolicyStats]:
    return _statistics(hf_dir, ParallelConfig(), init_parallel)


def _two(hf_dir: str) -> list[PolicyStats]:
    return _statistics(hf_dir, ParallelConfig(context=2), enter_layout)


@pytest.mark.long
def test_every_aggregation_reports_the_same_statistics(distributed, hf_dir):
    """Compare statistics.

    No sum counts a token once per rank, and the largest gap is the largest over all ranks.
    """
    one = distributed(1, _one, hf_dir, timeout_s=240)[0]
    for ranks in distributed(2, _two, hf_dir, timeout_s=240):
        for whole, cut in zip(one, ranks, strict=True):
            assert cut.step.loss == pytest.approx(whole.step.loss, abs=BOUND)
            assert cut.step.grad_norm == pytest.approx(whole.step.grad_norm, abs=BOUND)
            assert cut.step.tokens == whole.step.tokens
            for name in (field.name for field in fields(PolicyStats) if field.name not in NOT_FIGURES):
                assert getattr(cut, name) == pytest.approx(getattr(whole, name), rel=1e-5), name
            at, expected = cut.largest_gap, whole.largest_gap
            assert (at.sample, at.place, at.engine) == (expected.sample, expected.place, expected.engine)
            assert at.trainer == pytest.approx(expected.trainer, rel=1e-5)
    assert len({stats.step.loss for stats in one}) == len(PRESETS)
    assert all(0 < stats.clipped_share < 1 for stats in one)


def _write_then_step(hf_dir: str, directory: str) -> dict[str, torch.Tensor]:
    """Take a step, write a checkpoint of two context ranks that shard the optimizer, take another
    step.

    Returns the weights after it.
    """
    with (
        gathered_attention(),
        learner(hf_dir, LAYOUTS["CP2 +DO +recompute"][1], OPTIONS, enter_layout) as model,
    ):
        batch = samples(model.architecture.vocab_size)
        model.sft_step(batch, OPTIONS.learning_rate)
        TensorWrite(model, Path(directory), {}).is_done(blocking=True)
        model.sft_step(batch, OPTIONS.learning_rate)
        return {name: tensor.clone() for name, tensor in model.hf_tensors(1 << 20)}


def _read_then_step(hf_dir: str, directory: str) -> dict[str, torch.Tensor]:
    with learner(hf_dir, ParallelConfig(distributed_optimizer=True), OPTIONS) as model:
        read_tensors(model, Path(directory))
        model.sft_step(samples(model.architecture.vocab_size), OPTIONS.learning_rate)
        return {name: tensor.clone() for name, tensor in model.hf_tensors(1 << 20)}


@pytest.mark.long
def test_a_checkpoint_of_context_ranks_goes_on_over_data_ranks(distributed, hf_dir, tmp_path):
    wanted = distributed(2, _write_then_step, hf_dir, str(tmp_path), timeout_s=240)[0]
    for found in distributed(2, _read_then_step, hf_dir, str(tmp_path), timeout_s=240):
        for name, tensor in found.items():
            torch.testing.assert_close(
                tensor, wanted[name], rtol=0, atol=BOUND, msg=lambda text, name=name: f"{name}: {text}"
            )


def _sequence_ratio(hf_dir: str) -> str:
    with gathered_attention(), learner(hf_dir, ParallelConfig(context=2), OPTIONS, enter_layout) as model:
        with pytest.raises(ValueError, match="whole sequences") as refused:
            model.policy_step([], [], LossConfig.preset("gspo"), 0.0)
        return str(refused.value)


def test_a_ratio_per_sequence_is_refused(distributed, hf_dir):
    assert all(
        "2 context ranks" in message for message in distributed(2, _sequence_ratio, hf_dir, timeout_s=240)
    )


def _on_cpu(hf_dir: str) -> tuple[str, str]:
    """Collect the errors for a user's run and for a model with the product's own attention."""
    device = select_device()
    init_distributed(device, 120)
    with pytest.raises(UserError) as refused:
        init_parallel(Layout(1, 2, context=2), device, seed=1)
    with (
        pytest.raises(ValueError, match="needs Transformer Engine") as attention,
        learner(hf_dir, ParallelConfig(context=2), OPTIONS, enter_layout),
    ):
        pass
    return str(refused.value), str(attention.value)


def test_it_is_refused_on_cpu(distributed, hf_dir):
    for told, attention in distributed(2, _on_cpu, hf_dir, timeout_s=120):
        assert (
            told
            == "parallel.context=2 needs Transformer Engine's attention, so a GPU: set parallel.context=1"
        )
        assert "PackedCausalAttention does not split a sequence" in attention
