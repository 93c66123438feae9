"""Test that a stage which is added to `Stage` has checkpoints of its own, sorted among those of the
others.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from selfemo.records import manifest as state


def test_names_of_checkpoints_follow_from_the_stages(monkeypatch: pytest.MonkeyPatch):
    """Add one name to one line of selfemo/records/manifest.py, as docs/extending.md shows it."""
    source = Path(state.__file__).read_text(encoding="utf-8")
    before, after = (
        'Stage = Literal["start", "sft", "self-play"]',
        'Stage = Literal["start", "sft", "distil", "self-play"]',
    )
    assert source.count(before) == 1
    changed = types.ModuleType("state_with_a_stage")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    exec(compile(source.replace(before, after), state.__file__, "exec"), vars(changed))
    assert changed.CHECKPOINT_KINDS == ("sft", "distil", "iteration")
    assert state.CHECKPOINT_KINDS == ("sft", "iteration")
    assert [changed.Progress(stage, 3).name for stage in ("sft", "distil", "self-play")] == [
        "sft-000003",
        "distil-000003",
        "iteration-000003",
    ]
