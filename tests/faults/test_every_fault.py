"""Test every fault but the kills of test_every_kill.py.

Each ends as documented, and the run can be finished. After each, the same command must finish the
run to the same bits. Two processes of Megatron and vLLM are launched for each: `make test-faults`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.fault_runs import LAYOUTS, ends_in_time, finish

pytestmark = pytest.mark.faults

TP2 = LAYOUTS["TP2"]
DEADLINE_S = 40


def test_a_signal_that_cannot_be_followed_in_time_ends_the_run(launcher, tmp_path):
    faults = [
        {"at": "generate", "count": 3, "rank": 0, "do": "term"},
        {"at": "generate-done", "count": 3, "rank": 0, "do": "hang"},
    ]
    ended = launcher.run(tmp_path / "run", *TP2, "checkpoint.grace_s=5", faults=faults)
    assert all(ended.codes), ended.output
    assert "not done within checkpoint.grace_s=5" in ended.output


def test_a_signal_in_set_up_is_followed_when_set_up_is_done(launcher, untouched, tmp_path):
    """Send a signal to a resuming run before its engine is built.

    It must train and write nothing after set-up.
    """
    run = tmp_path / "run"
    ended = launcher.run(run, *TP2, faults=[{"at": "sft", "count": 30, "rank": 0, "do": "kill"}])
    assert -9 in ended.codes, ended.output
    ended = launcher.run(run, *TP2, faults=[{"at": "setup", "count": 1, "rank": 1, "do": "usr1"}])
    assert ended.codes == [0, 0], ended.output
    assert "stopped by SIGUSR1 after 16 SFT steps" in ended.output
    finish(launcher, run, untouched)


WAYS = {
    "a hung engine": ({"at": "generate", "count": 5, "rank": 1, "do": "hang"}, "engine call of"),
    "a dead engine": ({"at": "generate", "count": 5, "rank": 1, "do": "raise"}, "the engine died"),
    "a lost peer": (
        {"at": "optimizer", "count": 41, "rank": 1, "do": "kill"},
        "micro-batch|optimizer step|reduction",
    ),
    "a hung sync": ({"at": "sync-tensor", "count": 30, "rank": 1, "do": "hang"}, "tensor"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_rank_ends_in_time_and_says_what_it_was_about(launcher, tmp_path, way):
    fault, calls = WAYS[way]
    told = ends_in_time(launcher, tmp_path / "run", fault, DEADLINE_S)
    assert any(call in told for call in calls.split("|")), told


def test_steps_that_are_not_finite_stop_the_run_with_the_batch(launcher, tmp_path):
    faults = [{"at": "optimizer", "count": 4, "rank": -1, "do": "nan"}]
    ended = launcher.run(tmp_path / "run", *TP2, "train.max_skipped_steps=3", faults=faults)
    assert ended.codes == [2, 2], ended.output
    assert "SFT step 5: loss nan" in ended.output
    assert (tmp_path / "run" / "bad_batch" / "samples.safetensors").is_file()
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "sft"]
    assert [step["step_applied"] for step in steps] == [True] * 3 + [False] * 3
    assert steps[-1]["loss"] is None


def test_a_gap_above_its_bound_stops_the_run_which_goes_on_with_a_larger_one(launcher, untouched, tmp_path):
    run = tmp_path / "run"
    ended = launcher.run(run, *TP2, "rollout.max_logprob_gap=1e-9")
    assert ended.codes == [2, 2], ended.output
    assert re.search(
        r"iteration 0: engine and trainer disagree: token \d+ \('.*'\) at place \d+ .* sample \d+ has "
        r"logprob -[\d.e-]+ in the engine and -[\d.e-]+ in the trainer",
        ended.output,
    ), ended.output
    assert (run / "bad_batch" / "samples.safetensors").is_file()
    shutil.rmtree(run / "bad_batch")
    finish(launcher, run, untouched)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_finishes_the_run(launcher, untouched, tmp_path):
    ended = launcher.run(
        tmp_path / "run", *TP2, faults=[{"at": "evaluation", "count": 3, "rank": 0, "do": "kill"}]
    )
    assert -9 in ended.codes, ended.output
    newest = (
        tmp_path / "run" / "checkpoints" / (tmp_path / "run" / "checkpoints" / "latest").read_text().strip()
    )
    data = newest / "__1_0.distcp"
    data.write_bytes(data.read_bytes()[:-7])
    resumed = finish(launcher, tmp_path / "run", untouched)
    assert f"damaged, passed over: {newest}: __1_0.distcp is not what was written" in resumed.output


@pytest.fixture
def file_system(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system that can be full or read-only: permissions would not stop root."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a file system ({mounted.stderr.strip()})")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def resize(file_system: Path, size_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(file_system)], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(launcher, untouched, file_system):
    run = file_system / "run"
    ended = launcher.run(run, *TP2, faults=[{"at": "sft", "count": 30, "rank": 0, "do": "kill"}])
    assert -9 in ended.codes, ended.output
    resize(file_system, shutil.disk_usage(file_system).used + 200_000)  # room for logs, not for a checkpoint
    ended = launcher.run(run, *TP2)
    assert ended.codes == [2, 2], ended.output
    assert "a checkpoint cannot be written (No space left on device)" in ended.output
    resize(file_system, 1 << 30)
    finish(launcher, run, untouched)


def test_a_read_only_directory_is_one_line_and_the_run_goes_on_when_it_is_writable(
    launcher, untouched, file_system
):
    run = file_system / "run"
    ended = launcher.run(run, *TP2, faults=[{"at": "sft", "count": 30, "rank": 0, "do": "kill"}])
    assert -9 in ended.codes, ended.output
    subprocess.run(["mount", "-o", "remount,ro", str(file_system)], check=True)
    for place in (run, file_system / "new"):
        ended = launcher.run(place, *TP2)
        assert 2 in ended.codes, ended.output
        assert f"{place}: cannot be written (Read-only file system)" in ended.output
        assert "Traceback" not in ended.output
    subprocess.run(["mount", "-o", "remount,rw", str(file_system)], check=True)
    finish(launcher, run, untouched)


OTHER = {
    "TP1": (1, ("parallel.tensor=1",), ["processes 2 -> 1", "parallel.tensor 2 -> 1"]),
    "PP2": (2, ("parallel.tensor=1", "parallel.pipeline=2"), ["parallel.pipeline 1 -> 2"]),
    "DP2": (2, ("parallel.tensor=1",), ["parallel.tensor 2 -> 1"]),
}


@pytest.mark.parametrize("layout", OTHER)
def test_another_layout_goes_on_with_the_same_curve(launcher, untouched, tmp_path, layout):
    """Compare the curves up to the end of SFT.

    In self-play a rounding error may change a sampled token, so that it is not compared.
    """
    world_size, overrides, told = OTHER[layout]
    ended = launcher.run(tmp_path / "run", *TP2, faults=[{"at": "sft", "count": 30, "rank": 0, "do": "kill"}])
    assert -9 in ended.codes, ended.output
    ended = launcher.run(tmp_path / "run", *overrides, world_size=world_size)
    assert not any(ended.codes), ended.output
    for line in told:
        assert f"changed since: {line}" in ended.output
    for one, other in zip(losses(untouched), losses(tmp_path / "run"), strict=True):
        assert other == pytest.approx(one, abs=2e-4)


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "sft"]
