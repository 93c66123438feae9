"""Add the extensions of docs/extending.md to the package from outside, as the page shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfemo.kernels import config as loss_config
from selfemo.kernels.config import PRESETS
from selfemo.report import curves
from selfemo.rewards import components
from selfemo.rewards.components import COMPONENTS, Component
from selfemo.selfplay import views
from tests.helpers.guide import entry, example

AddComponent = Callable[..., Component]


@pytest.fixture
def add_brevity(monkeypatch: pytest.MonkeyPatch) -> AddComponent:
    """Return a function that adds the page's component to the recognizer, with any field changed."""

    def add(**changes: object) -> Component:
        names = dict(vars(components))
        exec(compile(example("selfemo/rewards/components.py"), "extending.md", "exec"), names)
        fields = vars(entry('selfemo/rewards/components.py, in COMPONENTS["recognizer"]', names)[0])
        component = Component(**{**fields, **changes})  # type: ignore[arg-type]
        monkeypatch.setitem(COMPONENTS, "recognizer", (*COMPONENTS["recognizer"], component))
        return component

    return add


@pytest.fixture
def transcript(monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's view, in the registry; its name."""
    names = dict(vars(views))
    exec(compile(example("selfemo/selfplay/views.py"), "extending.md", "exec"), names)
    (view,) = entry("selfemo/selfplay/views.py, in VIEWS", names)
    monkeypatch.setattr(views, "VIEWS", (*views.VIEWS, view))
    return view.name


@pytest.fixture
def rloo(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add the page's preset to the table."""
    ((name, preset),) = entry("kernels/config.py, in PRESETS", vars(loss_config)).items()
    monkeypatch.setitem(PRESETS, name, preset)
    return name


@pytest.fixture
def spread_curve(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add the page's curve to the report; returns its title."""
    (curve,) = entry("selfemo/report/curves.py, in ITERATION_CURVES", vars(curves))
    monkeypatch.setattr(curves, "ITERATION_CURVES", (*curves.ITERATION_CURVES, curve))
    return curve.title


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"
