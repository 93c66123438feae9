"""Fixtures shared by all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:  # plain `pytest` does not add it, and importlib mode leaves sys.path alone
    sys.path.insert(0, ROOT)

from tests.helpers.distributed import DistributedRunner  # noqa: E402

# The seconds that an example or its drawing takes depend on the machine more than on the code.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

LONGEST = ("test_main_job.py", "test_resume.py", "test_engine_sync.py", "test_parity.py")
"""Files that take a minute or more, most of it on both cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that of several workers none is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def distributed() -> Iterator[DistributedRunner]:
    """`distributed(world_size, function, *args, timeout_s=120)` -> results by rank.

    See tests/helpers/distributed.py.
    """
    runner = DistributedRunner()
    yield runner
    runner.close()
