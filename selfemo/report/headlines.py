"""Collects headline figures and their changes, each change with the stage that made it.

The supervised start (SFT) and SELF-GRPO are kept apart: a model that cannot answer at all before SFT
gains nearly everything there, and a single "change" from start to end would credit SELF-GRPO with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.kernels.config import PRESETS
from selfemo.records.reading import Json, RunRecords

STAGES = ("start", "sft", "final")
"""The evaluations of a run, in order."""
STAGE_COLOURS = ("--c7", "--c0", "--c1")
FIGURES = (
    ("accuracy", "Accuracy", True),
    ("weighted_f1", "Weighted F1", True),
    ("macro_f1", "Macro F1", True),
    ("siou", "Smoothed IoU", True),
    ("exact_match", "Exact match of the set", True),
    ("format_failure_rate", "Format failures", False),
    ("label_entropy", "Entropy of predicted labels (nats)", None),
    ("neutral_share", "Predicted neutral", None),
)
"""Field, name, and whether more is better (None: neither is)."""
MEANS_OF_TURNS = frozenset({"accuracy", "siou", "exact_match", "format_failure_rate"})
"""Figures that are means over turns of values in [0, 1]. They get an interval, because their variance
is at most m (1 - m) (equal to it for shares).
"""
THIRDS = 3
Z_95 = 1.96


@dataclass(frozen=True)
class Headline:
    """One figure over the stages; None for a stage that has not been evaluated."""

    name: str
    values: tuple[float | None, ...]
    """Values in the order of STAGES."""
    by_sft: float | None
    """Change that SFT made."""
    by_play: float | None
    """Change that self-play (SELF-GRPO, or the run's variant) made, from the SFT model on."""
    more_is_better: bool | None
    majority: float | None
    """Score of always answering the most frequent label, if that is known."""
    margin: float | None
    """Half of the 95% interval of the last value (normal approximation, turns taken as independent).
    None for other figures.
    """

    @property
    def last(self) -> float:
        """The newest value."""
        return next(value for value in reversed(self.values) if value is not None)

    @property
    def steps(self) -> list[tuple[float | None, float | None, str]]:
        """(value, change that this stage made, its colour) in the order of STAGES."""
        return list(zip(self.values, (None, self.by_sft, self.by_play), STAGE_COLOURS, strict=True))

    def verdict(self, change: float | None) -> str:
        """One of better, worse, noise (no larger than two such intervals explain), or "" if nothing can
        be said.
        """
        if change is None or self.more_is_better is None or self.margin is None:
            return ""
        if abs(change) <= math.sqrt(2) * self.margin:
            return "noise"
        return "better" if (change > 0) == self.more_is_better else "worse"


@dataclass(frozen=True)
class Fact:
    """One line about the run."""

    name: str
    value: str
    note: str = ""


def stage_names(records: RunRecords) -> tuple[str, str, str]:
    """Return the names of the stages, in the order of STAGES.

    A loss that this checkout does not have is called by its name in the configuration.
    """
    loss = records.config.algorithm.loss
    return "start", "SFT", PRESETS[loss].title if loss in PRESETS else loss


def headlines(records: RunRecords) -> list[Headline]:
    """Return the recognition figures that every recorded evaluation has."""
    evaluations = [records.evaluation(stage) for stage in STAGES]
    majority = (records.summary or {}).get("eval", {}).get("majority", {})
    found = [e for e in evaluations if e is not None]
    return [
        _headline(name, field, better, evaluations, majority.get(field))
        for field, name, better in FIGURES
        if found and all(e.get(field) is not None for e in found)
    ]


def _headline(
    name: str, field: str, better: bool | None, evaluations: Sequence[Json | None], majority: float | None
) -> Headline:
    values = tuple(None if e is None else float(e[field]) for e in evaluations)
    start, sft, final = values
    last = next((e for e in reversed(evaluations) if e is not None), None)
    margin = None
    if last is not None and field in MEANS_OF_TURNS:
        # rounding may put a mean beyond 1
        margin = Z_95 * math.sqrt(max(0.0, last[field] * (1 - last[field])) / last["n"])
    return Headline(name, values, _difference(sft, start), _difference(final, sft), better, majority, margin)


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def run_facts(records: RunRecords) -> list[Fact]:
    """Return the facts about the run besides recognition.

    They are reward, throughput, agreement of engine and trainer, flywheel, and syncs.
    """
    iterations, syncs = records.of("iteration"), records.of("sync")
    facts = []
    if iterations:
        third = max(1, len(iterations) // THIRDS)
        first, last = (
            sum(r["reward"] for r in part) / third for part in (iterations[:third], iterations[-third:])
        )
        facts.append(
            Fact(
                "Self-play reward",
                f"{first:.3f} → {last:.3f}",
                f"first and last {third} of {len(iterations)} iterations",
            )
        )
        samples, tokens = (sum(r[name] for r in iterations) for name in ("samples", "tokens"))
        rollout = sum(r["seconds"]["rollout"] for r in iterations)
        facts.append(
            Fact(
                "Sampled",
                f"{tokens:,} tokens",
                f"{samples:,} samples, {tokens / rollout if rollout else 0:,.0f} tokens/s while rolling out",
            )
        )
        gap = max((r["logprob_gap_max"] for r in iterations if r["logprob_gap_max"] is not None), default=0.0)
        facts.append(Fact("Largest logprob gap", f"{gap:.1e}", "engine against trainer, any sampled token"))
        skipped = sum(not r["step_applied"] for r in iterations)
        facts.append(Fact("Steps skipped", str(skipped), "iterations with a gradient that was not finite"))
        outcomes = [r["flywheel"] for r in iterations if "flywheel" in r]
        kept, dropped = (sum(sum(o[name].values()) for o in outcomes) for name in ("kept", "dropped"))
        if kept + dropped:
            facts.append(
                Fact(
                    "Flywheel",
                    f"{kept / (kept + dropped):.1%} kept",
                    f"{kept:,} of {kept + dropped:,} groups",
                )
            )
    if syncs:
        probes = sum(bool(s["probed"]) for s in syncs)
        seconds = sum(s["seconds"] for s in syncs) / len(syncs)
        facts.append(
            Fact(
                "Weight syncs",
                str(len(syncs)),
                f"{seconds:.3f} s on average; greedy probe matched {probes} times",
            )
        )
    return facts
