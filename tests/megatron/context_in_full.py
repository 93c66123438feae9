"""Context parallelism in the layouts that `make test` leaves out for their length: four processes each.

python -m pytest tests/megatron/context_in_full.py        # `make test-layouts`
"""

from __future__ import annotations

import pytest

from tests.megatron.context_parallel import LAYOUTS, OPTIONS, three_sft_steps, three_steps
from tests.megatron.parity import difference
from tests.megatron.test_context_parallel import BOUND, SHORT, hf_dir, policy_trace, sft_trace

__all__ = ["hf_dir", "policy_trace", "sft_trace"]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in SHORT])
def test_three_self_grpo_steps_are_those_of_one_process(distributed, hf_dir, policy_trace, name):
    processes, parallel = LAYOUTS[name]
    for trace in distributed(processes, three_steps, hf_dir, parallel, OPTIONS, timeout_s=240):
        assert difference(policy_trace, trace).largest <= BOUND, difference(policy_trace, trace)


def test_three_sft_steps_are_those_of_one_process(distributed, hf_dir, sft_trace):
    processes, parallel = LAYOUTS["CP2 TP2 +SP"]
    for trace in distributed(processes, three_sft_steps, hf_dir, parallel, OPTIONS, timeout_s=240):
        assert difference(sft_trace, trace).largest <= BOUND, difference(sft_trace, trace)
