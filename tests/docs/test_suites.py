"""Test that no suite is out of reach.

pytest collects every file of tests/ but the helpers, and each mark that is off by default has a
make target.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path("faults/run_with_faults.py")
"""Programs that launches run in place of `selfemo`."""


def test_every_file_is_collected_or_a_helper() -> None:
    files = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")} - {PROGRAM}
    others = [path for path in files if not path.name.startswith("test_") and path.name != "conftest.py"]
    assert [str(path) for path in others if path.parts[0] != "helpers"] == []
    assert [str(path) for path in files if path.parts[0] == "helpers" and path.name.startswith("test_")] == []


def test_every_mark_that_is_left_out_has_its_target() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    marks = dict(mark.split(": ", 1) for mark in settings["markers"])
    assert settings["addopts"][-1] == " and ".join(f"not {mark}" for mark in marks)
    recipes = (ROOT / "Makefile").read_text()
    for mark, meaning in marks.items():
        for target in re.findall(r"make ([a-z-]+)", meaning):
            assert re.search(rf"^{target}:", recipes, re.MULTILINE), f"{mark}: no target {target}"
            assert re.search(rf'-m "?{mark}\b', recipes) or target == "gpu-check"
