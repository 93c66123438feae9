"""The layouts that `make test` leaves out for their length: `make test-layouts`."""

from __future__ import annotations

import pytest

from tests.megatron import context_parallel
from tests.megatron.parity import DEFAULT, IN_FULL_ONLY, LAYOUTS, SHARED, difference, three_steps
from tests.megatron.test_context_parallel import SHORT, hf_dir, policy_trace, sft_trace
from tests.megatron.test_parity import BOUND, one_process

__all__ = ["hf_dir", "one_process", "policy_trace", "sft_trace"]


@pytest.mark.parametrize("name", IN_FULL_ONLY)
def test_every_layout_takes_the_same_three_steps(distributed, one_process, name):
    hf_dir, tied, one = one_process
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_steps, str(hf_dir), parallel, DEFAULT if tied else SHARED, timeout_s=240):
        assert difference(one, trace).largest <= BOUND, difference(one, trace)


@pytest.mark.parametrize("name", [name for name in context_parallel.LAYOUTS if name not in SHORT])
def test_three_self_grpo_steps_over_context_ranks_are_those_of_one_process(distributed, hf_dir, policy_trace, name):
    processes, parallel = context_parallel.LAYOUTS[name]
    for trace in distributed(processes, context_parallel.three_steps, hf_dir, parallel, context_parallel.OPTIONS, timeout_s=240):
        assert difference(policy_trace, trace).largest <= BOUND, difference(policy_trace, trace)


def test_three_sft_steps_over_context_and_tensor_ranks_are_those_of_one_process(distributed, hf_dir, sft_trace):
    processes, parallel = context_parallel.LAYOUTS["CP2 TP2 +SP"]
    for trace in distributed(processes, context_parallel.three_sft_steps, hf_dir, parallel, context_parallel.OPTIONS, timeout_s=240):
        assert difference(sft_trace, trace).largest <= BOUND, difference(sft_trace, trace)
