"""Lets a study evaluate the test split once, and records at which commit that was.

The record stands beside the runs. An evaluation that was cut short goes on at the same commit; another one
must be asked for, and the page tells of it.
"""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.evaluation.results import write_json
from tools.study.stored import read_stored
from tools.study.tables import SEPARATOR

RECORD = "test_evaluations.json"
ROOT = Path(__file__).resolve().parents[2]
CHANGED = " with uncommitted changes"


@dataclass(frozen=True)
class TestEvaluation:
    """One evaluation of the test split."""

    __test__ = False  # not a class of tests
    commit: str
    day: str
    is_done: bool = False

    def __str__(self) -> str:
        return f"commit {self.commit} on {self.day}"


@dataclass(frozen=True)
class Evaluations:
    """The record."""

    evaluations: list[TestEvaluation]


def evaluations(output: Path) -> list[TestEvaluation]:
    """Read the record, the first evaluation first; empty if there was none."""
    try:
        return read_stored(
            output / RECORD, Evaluations, "restore it: it says that the split was evaluated"
        ).evaluations
    except FileNotFoundError:
        return []


def check_test(output: Path, again: bool, commit: str) -> None:
    """Refuse an evaluation of the test split that nobody can repeat, or a second one that is not asked for.

    Raises:
        UserError: files differ from the commit, or there was one, and it is not this one cut short.
    """
    if commit.endswith(CHANGED):
        raise UserError(
            f"--test evaluates the test split once, at a commit that is recorded: {commit}: commit them first"
        )
    earlier = evaluations(output)
    if earlier and not again and not _goes_on(earlier, commit):
        state = "was evaluated" if earlier[-1].is_done else "was begun to be evaluated"
        raise UserError(
            f"{output / RECORD}: the test split {state} at {earlier[-1]}: it is evaluated once. "
            "--again does it a second time, and the page says so"
        )


def begin_test(output: Path, commit: str) -> None:
    """Record that the test split is about to be evaluated; what was cut short at this commit goes on."""
    earlier = evaluations(output)
    if not _goes_on(earlier, commit):
        _write(output, [*earlier, TestEvaluation(commit, datetime.now(UTC).date().isoformat())])


def end_test(output: Path) -> None:
    """Record that every model's answers are kept."""
    *earlier, last = evaluations(output)
    _write(output, [*earlier, replace(last, is_done=True)])


def is_done(output: Path) -> bool:
    """Tell whether the test split was evaluated to the end."""
    return any(evaluation.is_done for evaluation in evaluations(output))


def told(output: Path) -> str:
    """Return the evaluations as splits.csv has them."""
    return SEPARATOR.join(map(str, evaluations(output)))


def current_commit(checkout: Path = ROOT) -> str:
    """Return the commit of a checkout, and whether tracked files differ from it."""
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"
    return commit + (CHANGED if changed else "")


def _goes_on(earlier: list[TestEvaluation], commit: str) -> bool:
    return bool(earlier) and not earlier[-1].is_done and earlier[-1].commit == commit


def _write(output: Path, record: list[TestEvaluation]) -> None:
    write_json(output / RECORD, asdict(Evaluations(record)))


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout.strip()
