"""SELF-GRPO gives the same loss, gradient norm and parameters in every layout, within fp32 rounding."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from selfemo.config import ParallelConfig
from selfemo.megatron.packing import balance_by_tokens, units
from tests.megatron.parity import CLIP_GRAD, GROUP_SIZE, GROUPS, LAYOUTS, MAX_LENGTH, Options, difference, samples, three_steps
from tests.weights.tiny import VOCAB_SIZE, save_tiny

BOUND = 1e-6
UNSHARED = Options(share_prompts=False)
LAYERS = 4
"""Two per stage, so that a virtual pipeline has chunks."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def one_process(request, tmp_path_factory, distributed):
    """(directory, trace of the one-process run in which every sample has its own prompt).

    Hooks of Megatron's DDP keep each learner's groups, whose threads never sleep long: ranks that have seen a dozen layouts are ended.
    """
    hf_dir = save_tiny(tmp_path_factory.mktemp("parity") / "model", "qwen3", request.param, layers=LAYERS)
    yield hf_dir, distributed(1, three_steps, str(hf_dir), ParallelConfig(), UNSHARED, timeout_s=240)[0]
    distributed.close()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_takes_the_same_three_steps(distributed, one_process, name):
    hf_dir, one = one_process
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_steps, str(hf_dir), parallel, timeout_s=240):
        found = difference(one, trace)
        assert found.loss <= BOUND, found
        assert found.grad_norm <= BOUND, found
        assert found.parameter <= BOUND, found


@pytest.mark.parametrize("name", ["DP2", "PP2 VPP2", "TP2 +SP"])
def test_layouts_agree_without_shared_prompts_too(distributed, one_process, name):
    hf_dir, one = one_process
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_steps, str(hf_dir), parallel, UNSHARED, timeout_s=240):
        assert difference(one, trace).largest <= BOUND


def test_splitting_into_micro_batches_changes_nothing(distributed, one_process):
    hf_dir, one = one_process
    whole = distributed(1, three_steps, str(hf_dir), ParallelConfig(), Options(max_tokens=4096), timeout_s=240)[0]
    assert difference(one, whole).largest <= BOUND


def test_the_steps_were_worth_comparing(one_process):
    """The losses move, gradients are clipped, and no parameter stays where it was."""
    hf_dir, one = one_process
    start = AutoModelForCausalLM.from_pretrained(hf_dir)
    assert all(not one.tensors[name].equal(parameter) for name, parameter in start.named_parameters())
    assert len(set(one.losses)) == len(one.losses)
    assert min(one.grad_norms) > CLIP_GRAD


@pytest.mark.parametrize("data_size", [1, 2])
@pytest.mark.parametrize("share", [False, True])
def test_the_batch_is_one_that_hurts(data_size, share):
    """Lengths differ by an order of magnitude, and groups straddle micro-batches and data-parallel ranks: all, or half of them where
    what shares a prompt is kept together as far as it fits."""
    batch = samples(VOCAB_SIZE)
    lengths = [sample.length_tokens for sample in batch]
    assert max(lengths) > 10 * min(lengths)
    assert len(set(lengths)) > 6
    dealt = units(batch, share, MAX_LENGTH, data_size)
    bins = balance_by_tokens([unit.length_tokens for unit in dealt], MAX_LENGTH, data_size)
    place = {sample: slot for slot, members in enumerate(bins) for unit in members for sample in dealt[unit].sample_indices}
    slots = [{place[sample] for sample in range(first, first + GROUP_SIZE)} for first in range(0, len(lengths), GROUP_SIZE)]
    straddling = [group for group in slots if len(group) > 1 and len({slot % data_size for slot in group}) == data_size]
    assert len(straddling) >= (GROUPS // 2 if share else GROUPS)
