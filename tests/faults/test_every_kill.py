"""Kill a run at every point in turn, in both layouts: `make test-faults`, which prints a line per point."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.fault_runs import LAYOUTS, Launcher
from tests.helpers.kill_chain import CHAIN, compare_chain

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_killed_at_every_point_is_bit_identical(
    launcher: Launcher, tmp_path: Path, layout: str
) -> None:
    untouched = tmp_path / "untouched"
    ended = launcher.run(untouched, *LAYOUTS[layout], "checkpoint.keep=100")
    assert ended.codes == [0, 0], ended.output
    assert compare_chain(launcher, untouched, tmp_path / "killed", layout, CHAIN) == []
