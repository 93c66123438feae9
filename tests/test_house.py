"""Test the rules of the house: few modules at the top, short files.

Import rules between packages are the import contract's.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
DOORS = 24
LONGEST_LINES = 400
MEDIAN_LINES = 120
SEES_WHOLE_RUNS = {
    *("commands", "trainer.py", "run", "system.py", "config"),  # they set up a run
    *("inference", "planning", "records", "report"),  # their subject is a run
}
"""Rooms that may name RunConfig. Others get the sections, or the fields, that they read."""


def lines_by_file() -> dict[str, int]:
    """Count {path: lines} of the product's source and its tools."""
    paths = [path for room in ("selfemo", "kernels", "tools") for path in (ROOT / room).rglob("*.py")]
    # selfemo/kernels is a link to kernels/.
    ours = [path.relative_to(ROOT) for path in paths if not path.is_relative_to(ROOT / "selfemo" / "kernels")]
    return {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in ours}


def test_a_stranger_finds_few_doors() -> None:
    entries = [
        path
        for path in (ROOT / "selfemo").iterdir()
        if not path.is_symlink() and not path.name.startswith("__")
    ]
    doors = sorted(path.name for path in entries if path.suffix == ".py" or any(path.glob("*.py")))
    assert len(doors) <= DOORS, doors


def test_files_are_short() -> None:
    lines = lines_by_file()
    assert {path: count for path, count in lines.items() if count > LONGEST_LINES} == {}
    assert median(count for path, count in lines.items() if not path.endswith("__init__.py")) <= MEDIAN_LINES


def test_a_room_gets_its_section_of_the_configuration() -> None:
    """A part that takes RunConfig can come to depend on any setting, and its tests must build a run's."""
    rooms = {
        path.relative_to(ROOT / "selfemo").parts[0]
        for path in (ROOT / "selfemo").rglob("*.py")
        if re.search(r"\bRunConfig\b", path.read_text(encoding="utf-8"))
    }
    assert rooms == SEES_WHOLE_RUNS
