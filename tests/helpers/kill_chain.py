"""Kill one run at one point after another, and compare it with an undisturbed run.

The same command starts it again after each kill. Every launch resumes in full: find the newest good
checkpoint, rewind the records, load, sync, check, go on. After every kill the disk is compared with
the undisturbed run: records must be a prefix of its records, checkpoints equal its checkpoints
tensor by tensor. A kill counts if the fault itself struck, and if the launch had resumed from the
checkpoint that was there. Once the run has been left to finish, everything must be equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.fault_runs import (
    LAYOUTS,
    TIMED_EVENTS,
    Ended,
    Launcher,
    fingerprint,
    tensors,
    without_timings,
)

ALL = -1
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a rank (ALL: to each) when it has passed a point `count` times since its start."""

    at: str
    count: int
    rank: int


CHAIN = (
    Kill("setup", 1, 0),
    Kill("sync-loading", 1, 1),
    Kill("evaluation-done", 1, 0),
    Kill("sft", 10, ALL),
    Kill("checkpoint-tensors", 1, 1),
    Kill("checkpoint-commit", 1, 0),
    Kill("checkpoint-rename-done", 1, 0),
    Kill("sft-done", 3, 1),
    Kill("checkpoint-tensors-done", 1, ALL),
    Kill("checkpoint-prune", 1, 0),
    Kill("sync", 2, 1),
    Kill("evaluation", 1, ALL),
    Kill("rollout", 1, ALL),
    Kill("generate", 5, 1),
    Kill("generate-done", 4, 0),
    Kill("reward", 1, 0),
    Kill("flywheel", 1, 0),
    Kill("flywheel-record", 3, 0),
    Kill("flywheel-done", 1, 0),
    Kill("logprobs", 1, 1),
    Kill("step", 1, ALL),
    Kill("step-done", 1, 0),
    Kill("sync-done", 3, 1),
    Kill("metrics", 6, 0),
    Kill("metrics-done", 6, 0),
    Kill("checkpoint", 1, 1),
    Kill("checkpoint-rename-done", 1, 0),
    Kill("checkpoint-rename", 2, 0),
    Kill("optimizer", 2, ALL),
    Kill("checkpoint-done", 3, 0),
    Kill("evaluation", 1, 1),
    Kill("export", 1, ALL),
    Kill("export-done", 1, 0),
    Kill("summary", 1, 0),
)
SHORT = (Kill("sft", 20, 1), Kill("flywheel-record", 3, 0), Kill("checkpoint-rename-done", 2, ALL))


def compare_chain(
    launcher: Launcher,
    untouched: Path,
    killed: Path,
    layout: str,
    chain: tuple[Kill, ...],
    tell: Tell = print,
) -> list[str]:
    """Run `killed` through the chain and compare it with a finished run.

    Returns one line per difference, none if they are equal.
    """
    problems, known = [], _checkpoints(untouched)
    for kill in chain:
        resumed, struck = _resumable(killed), killed / "logs" / "struck"
        struck.unlink(missing_ok=True)
        ended = launcher.run(
            killed,
            *LAYOUTS[layout],
            faults=[{"at": kill.at, "count": kill.count, "rank": kill.rank, "do": "kill"}],
        )
        found = _struck(ended, kill, struck) or _resumed(ended, resumed) or _partial(untouched, killed, known)
        who = "all ranks" if kill.rank == ALL else f"rank {kill.rank}"
        on_disk = (
            ", ".join(sorted(path.name for path in killed.glob("checkpoints/*-0*") if path.name[0] != "."))
            or "none"
        )
        tell(f"{layout}  {kill.at:<24} {who:<9}  checkpoints: {on_disk:<40} {found or 'equal so far'}")
        problems += [f"{layout} {kill}: {found}"] if found else []
    resumed = _resumable(killed)
    ended = launcher.run(killed, *LAYOUTS[layout])
    if found := f"the last launch failed\n{ended.output}" if any(ended.codes) else _resumed(ended, resumed):
        return [*problems, f"{layout}: {found}"]
    one, other = fingerprint(untouched), fingerprint(killed)
    return problems + [
        f"{layout}: {name} differs at the end"
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    ]


def _struck(ended: Ended, kill: Kill, struck: Path) -> str:
    """Explain why the kill did not end the launch.

    A SIGKILL alone may be the launcher's, to a rank that hung after another had failed.
    """
    ranks = range(len(ended.codes)) if kill.rank == ALL else [kill.rank]
    if struck.exists() and any(ended.codes[rank] == -9 for rank in ranks):
        return ""
    return f"not killed there: exit statuses {ended.codes}\n{ended.output[-2000:]}"


def _resumable(run: Path) -> Path | None:
    """Find the checkpoint to resume from: that which `latest` names, or the newest if there is no
    `latest` yet.
    """
    found = {path.name: path for path in run.glob("checkpoints/*-0*") if path.name[0] != "."}
    latest = run / "checkpoints" / "latest"
    newest = max(
        found.values(), key=lambda path: (path.name.startswith("iteration"), path.name), default=None
    )
    return found.get(latest.read_text().strip(), newest) if latest.exists() else newest


def _resumed(ended: Ended, checkpoint: Path | None) -> str:
    """Explain why the launch did not go on from the checkpoint that was there when it began."""
    lines = [line for line in ended.output.splitlines() if line.startswith("resuming from ")]
    expected = [f"resuming from {checkpoint}"] if checkpoint else []
    return "" if lines == expected else f"said {lines}, expected {expected}\n{ended.output[-2000:]}"


def _partial(untouched: Path, killed: Path, known: dict[str, dict[str, str]]) -> str:
    """List the differences on the disk of a run that was just killed."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        whole, part = _records(untouched / name), _records(killed / name)
        if part != whole[: len(part)]:
            return f"{name} is no prefix"
    for name, content in _checkpoints(killed).items():
        if name in known and content != known[name]:
            return f"{name} differs"
    return ""


def _checkpoints(run: Path) -> dict[str, dict[str, str]]:
    return {path.name: tensors(path) for path in run.glob("checkpoints/*-0*") if path.name[0] != "."}


def _records(path: Path) -> list[Any]:
    if not path.exists():
        return []
    *lines, torn = path.read_text().split("\n")  # a line that a kill cut off has no end of line
    del torn
    return [
        without_timings(record)
        for record in map(json.loads, lines)
        if record.get("event") not in TIMED_EVENTS
    ]
