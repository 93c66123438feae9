"""Provide the runs that tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.made_run import make_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a finished run, in a directory whose name is markup."""
    return make_run(tmp_path_factory.mktemp("report") / "<i>run&")


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run under way: no final evaluation, no summary, half a line at the end."""
    return make_run(tmp_path_factory.mktemp("report") / "live", finished=False)
