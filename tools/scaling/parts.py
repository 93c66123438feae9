"""Measures the project's own parts of an iteration, on one rank of worlds of 8 to 4,096 GPUs.

Each simulated rank is a process of its own (tools/scaling/simulated_rank.py), one at a time: rank 0, which
decides for the flywheel of all, and one in the middle of the world.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from selfemo.common.errors import UserError

WORLDS = (8, 64, 512, 4096)
"""GPUs of the simulated worlds."""
FLAT = 1.25
"""Largest ratio of the costs in two worlds that counts as flat."""
MEASURES = ("seconds", "received_bytes", "peak_bytes")


@dataclass(frozen=True)
class RankCost:
    """What one iteration costs one rank of a world."""

    gpus: int
    rank: int
    samples: int
    """Its own."""
    groups: int
    """Of its own samples."""
    parts: dict[str, float]
    """Processor seconds of each part."""
    loop_s: float
    """Processor seconds of a fixed loop, timed between the iterations."""
    received_bytes: int
    """Bytes that others send to it, without the weights and gradients."""
    peak_bytes: int
    """Memory at its peak, above what the process has before the iteration."""

    @property
    def seconds(self) -> float:
        """Processor seconds of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class OwnCost:
    """Cost of the project's own parts on a rank."""

    sample_us: float = 0.0
    """Microseconds per sample of its own."""
    group_us: float = 0.0
    """Microseconds on every rank per group of the whole batch: rank 0 takes them, and the others wait."""

    def seconds(self, samples: int, groups: int, ranks: int) -> float:
        """Return the seconds that a batch of all ranks takes of each of them."""
        return (samples / ranks * self.sample_us + groups * self.group_us) / 1e6


def measure_parts(worlds: Sequence[int], kept: Path, say: Callable[[str], None] = print) -> list[RankCost]:
    """Measure rank 0 and one in the middle of each world; returns the costs at one speed.

    Results are kept in the JSON file `kept` and not measured again.

    Raises:
        UserError: a world of one GPU.
        RuntimeError: a simulated rank fails; holds the end of what it printed.
    """
    if any(gpus < 2 for gpus in worlds):
        raise UserError("--worlds: a world has 2 GPUs or more; 0 alone measures none")
    found = [RankCost(**cost) for cost in json.loads(kept.read_text())] if kept.exists() else []
    for gpus in worlds:
        for rank in (0, gpus // 2):
            if any((cost.gpus, cost.rank) == (gpus, rank) for cost in found):
                continue
            found.append(_measure(gpus, rank, kept.parent / "tokenizer"))
            cost = found[-1]
            received, peak = cost.received_bytes / 1e6, cost.peak_bytes / 1e6
            say(
                f"rank {rank} of {gpus}: {cost.seconds:.3f} s of processor time, {received:.2f} MB received, "
                f"{peak:.0f} MB at the peak"
            )
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps([asdict(cost) for cost in found], indent=1) + "\n")
    return at_one_speed(
        sorted((cost for cost in found if cost.gpus in worlds), key=lambda cost: (cost.gpus, cost.rank))
    )


def _measure(gpus: int, rank: int, tokenizer: Path) -> RankCost:
    command = [sys.executable, "-m", "tools.scaling.simulated_rank", str(gpus), str(rank), str(tokenizer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"rank {rank} of {gpus} simulated GPUs: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return RankCost(gpus, rank, **found)


def at_one_speed(costs: Sequence[RankCost]) -> list[RankCost]:
    """Scale every rank's seconds as if the fixed loop had taken it as long as it took the median rank."""
    if not costs:
        return []
    usual_s = median(cost.loop_s for cost in costs)
    return [
        replace(cost, parts={part: s * usual_s / cost.loop_s for part, s in cost.parts.items()})
        for cost in costs
    ]


def growth(costs: Sequence[RankCost]) -> dict[str, float]:
    """Return, by measure and rank, the largest world's cost over the smallest world's."""
    found = {}
    for name, of_rank in (("rank 0", _is_first), ("another rank", lambda cost: not _is_first(cost))):
        mine = sorted(filter(of_rank, costs), key=lambda cost: cost.gpus)
        if len(mine) > 1:
            for measure in MEASURES:
                found[f"{measure} of {name}"] = getattr(mine[-1], measure) / getattr(mine[0], measure)
    return found


def own_cost(costs: Sequence[RankCost]) -> OwnCost:
    """Split the cost of rank 0, which the others wait for, into that of own samples and that of all groups.

    The smallest world gives the one, what the largest takes beyond it the other.
    """
    mine = sorted(filter(_is_first, costs), key=lambda cost: cost.gpus)
    if not mine:
        return OwnCost()
    small, large = mine[0], mine[-1]
    per_sample = small.seconds / small.samples
    beyond = large.seconds - per_sample * large.samples
    groups = large.groups * large.gpus - small.groups * small.gpus
    return OwnCost(per_sample * 1e6, max(0.0, beyond) / groups * 1e6 if groups else 0.0)


def _is_first(cost: RankCost) -> bool:
    return cost.rank == 0
