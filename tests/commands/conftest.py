"""Provide a finished run and the one engine that serves every test of these commands.

Fixtures live as long as the session, since two files use them and a second engine would cost a
minute. They import libraries when they are used: most tests of this folder need none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selfemo.inference.engines import StandaloneEngines
    from selfemo.inference.finished_model import FinishedModel


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the run of tests/helpers/finished_run.py."""
    from tests.helpers.finished_run import write_finished_run

    run = tmp_path_factory.mktemp("finished") / "run"
    write_finished_run(run)
    return run


@pytest.fixture(scope="session")
def engines() -> StandaloneEngines:
    from selfemo.inference.engines import StandaloneEngines

    return StandaloneEngines()


@pytest.fixture(scope="session")
def trained(run_dir: Path) -> FinishedModel:
    from selfemo.inference.finished_model import find_model

    return find_model(run_dir / "model")
