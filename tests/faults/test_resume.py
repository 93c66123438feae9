"""The short form of the fault tests: three kills, two signals and a stopped rank, on two real processes of Megatron and vLLM.

`make test-faults` has every point, both layouts (chain.py) and every other fault (in_full.py).
"""

from __future__ import annotations

import pytest

from tests.faults.chain import SHORT, compare_chain
from tests.faults.runs import LAYOUTS, ends_in_time, finish

TP2 = LAYOUTS["TP2"]


def test_a_run_killed_at_three_points_is_bit_identical(launcher, untouched, tmp_path):
    assert compare_chain(launcher, untouched, tmp_path / "run", "TP2", SHORT) == []


@pytest.mark.parametrize(("sent", "at", "count", "place"), [("term", "reward", 1, "1 iterations"), ("usr1", "generate", 5, "0 iterations")])
def test_a_signal_leaves_a_checkpoint_and_status_0(launcher, untouched, tmp_path, sent, at, count, place):
    """To one rank, after the iteration's last engine call (the iteration is finished) and before it (it is given up)."""
    ended = launcher.run(tmp_path / "run", *TP2, faults=[{"at": at, "count": count, "rank": 1, "do": sent}])
    assert ended.codes == [0, 0], ended.output
    assert f"stopped by SIG{sent.upper()} after {place}" in ended.output
    resumed = finish(launcher, tmp_path / "run", untouched)
    assert "resuming from" in resumed.output


def test_a_stopped_rank_ends_the_run_in_time_with_rank_phase_iteration_and_call(launcher, tmp_path):
    fault = {"at": "generate", "count": 5, "rank": 1, "do": "stop"}
    told = ends_in_time(launcher, tmp_path / "run", fault, deadline_s=20)
    assert "rank 0 on " in told
    assert "in phase rollout, iteration 0, engine call of 12 requests" in told
