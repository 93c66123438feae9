"""Provide one launcher and one undisturbed run to all fault tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.fault_runs import LAYOUTS, Launcher


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("launches"))


@pytest.fixture(scope="session")
def untouched(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finish a run without any fault."""
    run = tmp_path_factory.mktemp("faults") / "untouched"
    ended = launcher.run(run, *LAYOUTS["TP2"])
    assert ended.codes == [0, 0], ended.output
    return run
