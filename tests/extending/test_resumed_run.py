"""Test whole runs with a reward component that is added as docs/extending.md says, killed and resumed.

A run that had it from the start ends with the same bits as one that nobody killed. A run that began without
it goes on with it. test_reward.py proves the parts of this in seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from selfemo.records.reading import read_run
from selfemo.report.page import render
from selfemo.rewards import components
from selfemo.rewards.components import COMPONENTS
from tests.faults.run_with_faults import main
from tests.helpers.fault_runs import Launcher, fingerprint
from tests.helpers.guide import entry, example

pytestmark = pytest.mark.slow
KILL = {"at": "step", "count": 2, "rank": 0, "do": "kill"}
"""In iteration 1, before its optimizer step."""
WRITTEN = "checkpoint.background=false"
"""The checkpoint of iteration 0 is complete before iteration 1 begins."""


def with_brevity(arguments: list[str], faults: list[dict[str, Any]]) -> None:
    """Run `selfemo` with the page's component at the end of the recognizer's."""
    names = dict(vars(components))
    exec(compile(example("selfemo/rewards/components.py"), "extending.md", "exec"), names)
    (component,) = entry('selfemo/rewards/components.py, in COMPONENTS["recognizer"]', names)
    COMPONENTS["recognizer"] = (*COMPONENTS["recognizer"], component)
    sys.argv = ["selfemo", *arguments]
    sys.exit(main(faults))


@pytest.fixture
def extended(tmp_path: Path) -> Launcher:
    (tmp_path / "extended").mkdir()
    return Launcher(tmp_path / "extended", with_brevity)


@pytest.fixture
def plain(tmp_path: Path) -> Launcher:
    (tmp_path / "plain").mkdir()
    return Launcher(tmp_path / "plain")


def _kill_and_resume(first: Launcher, second: Launcher, run: Path) -> None:
    killed = first.run(run, WRITTEN, world_size=1, faults=[KILL])
    assert killed.codes == [-9], killed.output
    ended = second.run(run, WRITTEN, world_size=1)
    assert ended.codes == [0], ended.output
    assert "resuming from" in ended.output


def test_a_killed_run_with_it_ends_with_the_bits_of_one_that_was_not(extended: Launcher, tmp_path: Path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    ended = extended.run(whole, world_size=1)
    assert ended.codes == [0], ended.output
    _kill_and_resume(extended, extended, run)
    one, other = fingerprint(whole), fingerprint(run)
    assert [name for name in {**one, **other} if one.get(name) != other.get(name)] == []
    paid = [record["reward_brevity"] for record in read_run(run).of("iteration")]
    assert len(paid) == 3
    assert any(paid), "the model answers with single labels"


def test_a_run_that_began_without_it_goes_on_with_it(plain: Launcher, extended: Launcher, tmp_path: Path):
    _kill_and_resume(plain, extended, tmp_path / "run")
    records = read_run(tmp_path / "run")
    assert ["reward_brevity" in record for record in records.of("iteration")] == [False, True, True]
    assert '<th scope="col" class="n">brevity</th>' in render(records)
