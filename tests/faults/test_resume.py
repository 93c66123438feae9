"""Test the short form of the fault tests: three kills; a signal is long, a stopped rank slow.

Two real processes of Megatron and vLLM. `make test-faults` has every point in both layouts
(test_every_kill.py) and every other fault (test_every_fault.py).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.store import Filter
from selfemo.records.directory import flywheel_files
from selfemo.records.reading import read_run
from tests.helpers import kill_chain as chain
from tests.helpers.fault_runs import LAYOUTS, Ended, ends_in_time, finish
from tests.helpers.kill_chain import SHORT, Kill, compare_chain

TP2 = LAYOUTS["TP2"]


def test_a_run_killed_at_three_points_is_bit_identical(launcher, untouched, tmp_path):
    assert compare_chain(launcher, untouched, tmp_path / "run", "TP2", SHORT) == []


def test_the_run_that_is_killed_has_a_teacher_that_reads_turns_and_replies(untouched):
    """What a kill could lose is there to be lost: it is read where the second round begins, and taught."""
    with closing(JoinedStores(flywheel_files(untouched))) as stores:
        records = list(stores.find(Filter()))
    waiting = {r.record_id for r in records if r.reason == "expression" and r.iteration == 0}
    read = [r for r in records if r.parent in waiting and r.role == "recognizer" and r.target]
    assert waiting
    assert sorted(r.parent for r in read) == sorted(waiting), "each of the first round's replies, once"
    assert {r.iteration for r in read} == {1}
    assert any(r.reason == "read back" for r in read)
    teachers = [event for event in read_run(untouched).events if event["event"] == "teacher"]
    assert [event["replies"] for event in teachers] == [0, len(read)]
    assert teachers[1]["replies_read_as_meant"] == sum(r.kept for r in read)


class ScriptedLauncher:
    """Stand in for the launcher.

    Each launch ends as given: (exit statuses, whether the fault struck, output).
    """

    def __init__(self, *launches: tuple[list[int], bool, str]) -> None:
        self.launches = iter(launches)

    def run(self, run: Path, *overrides: str, faults: object = None) -> Ended:
        codes, strikes, output = next(self.launches)
        if strikes:
            (run / "logs" / "struck").write_text("1.0")
        return Ended(codes, output.format(checkpoints=run / "checkpoints"), 0.0)


RESUMES = "resuming from {checkpoints}/sft-000032\n"
KILLED, DONE = ([-9, 1], True, RESUMES), ([0, 0], False, RESUMES)


@pytest.mark.parametrize(
    ("killed", "last", "problem"),
    [
        (KILLED, DONE, ""),
        (([1, 1], True, RESUMES), DONE, "not killed there"),
        (
            ([-9, 1], False, RESUMES),
            DONE,
            "not killed there",
        ),  # killed by the launcher after another rank's failure
        (([-9, 1], True, ""), DONE, "said []"),  # started over instead of resuming
        (([-9, 1], True, RESUMES.replace("32", "16")), DONE, "sft-000016'], expected"),
        (KILLED, ([0, 0], False, ""), "said []"),
        (KILLED, ([0, 2], False, RESUMES), "the last launch failed"),
    ],
)
def test_the_chain_notices_a_kill_that_did_not_strike_and_a_run_that_started_over(
    monkeypatch, tmp_path, killed, last, problem
):
    monkeypatch.setattr(chain, "fingerprint", lambda run: {})
    monkeypatch.setattr(chain, "tensors", lambda checkpoint: {})
    run = tmp_path / "run"
    for name in ("logs", "checkpoints/sft-000016", "checkpoints/sft-000032", "checkpoints/sft-000040"):
        (run / name).mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("sft-000032\n")
    (run / "logs" / "struck").write_text("0.0")  # left by an earlier kill
    found = compare_chain(
        ScriptedLauncher(killed, last),
        tmp_path / "untouched",
        run,
        "TP2",
        (Kill("sft", 1, 0),),
        lambda line: None,
    )
    assert [problem in line for line in found] == ([True] if problem else [])


@pytest.mark.parametrize(
    ("sent", "at", "count", "place"),
    [
        pytest.param("term", "reward", 1, "1 iterations", marks=pytest.mark.slow),
        pytest.param("usr1", "generate", 5, "0 iterations", marks=pytest.mark.long),
    ],
)
def test_a_signal_leaves_a_checkpoint_and_status_0(launcher, untouched, tmp_path, sent, at, count, place):
    """Send the signal to one rank.

    The iteration is finished if its last engine call is over, else dropped.
    """
    ended = launcher.run(tmp_path / "run", *TP2, faults=[{"at": at, "count": count, "rank": 1, "do": sent}])
    assert ended.codes == [0, 0], ended.output
    assert f"stopped by SIG{sent.upper()} after {place}" in ended.output
    resumed = finish(launcher, tmp_path / "run", untouched)
    assert "resuming from" in resumed.output


@pytest.mark.slow
def test_a_stopped_rank_ends_the_run_in_time_with_rank_phase_iteration_and_call(launcher, tmp_path):
    fault = {"at": "generate", "count": 5, "rank": 1, "do": "stop"}
    told = ends_in_time(launcher, tmp_path / "run", fault, deadline_s=30)
    assert "rank 0 on " in told
    assert "in phase rollout, iteration 0, agreement whether to stop" in told
