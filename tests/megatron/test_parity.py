"""Test that SELF-GRPO has the same loss, gradient norm and parameters in every layout, within fp32
rounding.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM

from selfemo.config.schema import ParallelConfig
from selfemo.megatron.packing import balance_by_tokens, units
from tests.helpers.parity import (
    CLIP_GRAD,
    DEFAULT,
    GROUP_SIZE,
    GROUPS,
    LAYOUTS,
    SHARED,
    SLOW,
    Options,
    difference,
    samples,
    three_steps,
)
from tests.helpers.tiny_model import VOCAB_SIZE, save_tiny

BOUND = 1e-6
LAYERS = 4
"""Two layers per stage, so that a virtual pipeline has chunks."""


@pytest.fixture(
    scope="module", params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"]
)
def one_process(request, tmp_path_factory, distributed):
    """Run one process: (directory, whether embeddings are tied, trace with a prompt of its own for
    every sample).

    Ranks that have seen a dozen layouts are ended: hooks of Megatron's DDP keep each learner's
    groups, whose threads wake often.
    """
    hf_dir = save_tiny(tmp_path_factory.mktemp("parity") / "model", "qwen3", request.param, layers=LAYERS)
    yield hf_dir, request.param, distributed(1, three_steps, str(hf_dir), ParallelConfig(), timeout_s=240)[0]
    distributed.close()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LAYOUTS]
)
def test_every_layout_takes_the_same_three_steps(distributed, one_process, name):
    """Compare steps: own prompts for samples if embeddings are tied, else a prompt that the group
    shares.

    Untied ones are slow; tests/megatron/test_frozen_layers.py has them in every `make test`.
    """
    hf_dir, tied, one = one_process
    processes, parallel = LAYOUTS[name]
    for trace in distributed(
        processes, three_steps, str(hf_dir), parallel, DEFAULT if tied else SHARED, timeout_s=240
    ):
        found = difference(one, trace)
        assert found.loss <= BOUND, found
        assert found.grad_norm <= BOUND, found
        assert found.parameter <= BOUND, found


@pytest.mark.parametrize(
    "options",
    [Options(max_tokens=4096), SHARED, replace(SHARED, max_tokens=4096)],
    ids=["one", "shared", "one shared"],
)
def test_how_samples_are_packed_changes_nothing(distributed, one_process, options):
    hf_dir, _, one = one_process
    other = distributed(1, three_steps, str(hf_dir), ParallelConfig(), options, timeout_s=240)[0]
    assert difference(one, other).largest <= BOUND


def test_the_steps_were_worth_comparing(one_process):
    """Check that the losses move, gradients are clipped, and every parameter changes."""
    hf_dir, _, one = one_process
    start = AutoModelForCausalLM.from_pretrained(hf_dir)
    assert all(not one.tensors[name].equal(parameter) for name, parameter in start.named_parameters())
    assert len(set(one.losses)) == len(one.losses)
    assert min(one.grad_norms) > CLIP_GRAD


@pytest.mark.parametrize("data_size", [1, 2])
@pytest.mark.parametrize(
    ("options", "expected"), [(DEFAULT, GROUPS), (SHARED, GROUPS // 2)], ids=["own prompts", "shared"]
)
def test_the_batch_is_one_that_hurts(data_size, options, expected):
    """Check that lengths differ by an order of magnitude and groups straddle micro-batches and
    data-parallel ranks.

    All groups do, or half of them if samples that share a prompt stay together as far as they fit.
    """
    batch = samples(VOCAB_SIZE)
    lengths = [sample.length_tokens for sample in batch]
    assert max(lengths) > 10 * min(lengths)
    assert len(set(lengths)) > 6
    dealt = units(batch, options.share_prompts, options.max_tokens, data_size)
    bins = balance_by_tokens([unit.length_tokens for unit in dealt], options.max_tokens, data_size)
    place = {
        sample: slot
        for slot, members in enumerate(bins)
        for unit in members
        for sample in dealt[unit].sample_indices
    }
    slots = [
        {place[sample] for sample in range(first, first + GROUP_SIZE)}
        for first in range(0, len(lengths), GROUP_SIZE)
    ]
    assert (
        sum(len(group) > 1 and len({slot % data_size for slot in group}) == data_size for group in slots)
        == expected
    )
