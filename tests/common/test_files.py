"""Test that a command's file is written whole or not at all, and that no temporary is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.common.files import check_target, new_file


def test_a_new_file_takes_the_place_of_the_old_one_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    target.write_text("old")
    with new_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.suffix == ".json"
    assert target.read_text() == "new"
    with pytest.raises(TypeError), new_file(target) as temporary:
        temporary.write_text("half") + ""  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert target.read_text() == "new"


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with (
        pytest.raises(UserError, match=r"^--json .*taken: cannot be written \("),
        new_file(tmp_path / "taken", "--json") as temporary,
    ):
        temporary.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    for place in (tmp_path / "taken", tmp_path / "nowhere" / "r.json"):
        with pytest.raises(UserError, match=r"--json .*expected a file in an existing directory"):
            check_target(place, "--json")
