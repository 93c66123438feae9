"""Turns one SELF-GRPO iteration into records: its figures in metrics.jsonl, and a dialogue in samples.jsonl.

Figures are means over the iteration's samples of one role, so that a curve tells which of the two roles
changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfemo.emotions.answer import Answer
from selfemo.rewards.components import metric_name
from selfemo.rewards.scoring import ScoredGroup
from selfemo.selfplay.records import Episode

if TYPE_CHECKING:  # records of a run can be made without torch
    from selfemo.megatron.step_stats import PolicyStats

ROLES = ("recognizer", "responder")


def component_means(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Mean of every reward component over the samples that have it, by `metric_name`."""
    values: dict[str, list[float]] = {}
    for group in groups:
        for component in group.components:
            values.setdefault(metric_name(component, group.group.role), []).extend(
                group.component(component.name)
            )
    return {name: _mean(column) for name, column in values.items()}


def role_figures(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Compute figures per role.

    They are the mean smoothed IoU of its samples, the mean agreement of its groups, and completion lengths in
    tokens.
    """
    figures: dict[str, float] = {}
    for role in ROLES:
        mine = [group for group in groups if group.group.role == role]
        if not mine:
            continue
        samples = [sample for group in mine for sample in group.group.samples]
        lengths = [len(sample.completion_ids) for sample in samples]
        figures |= {
            f"siou_{role}": _mean([score for group in mine for score in group.scores]),
            f"agreement_{role}": _mean([group.group.consensus.agreement for group in mine]),
            f"prompt_tokens_{role}": _mean([len(sample.prompt_ids) for sample in samples]),
            f"completion_tokens_{role}": _mean(lengths),
            f"completion_tokens_max_{role}": max(lengths),
            f"unfinished_share_{role}": _mean([float(not sample.finished) for sample in samples]),
        }
    return figures


def policy_figures(stats: Sequence[PolicyStats]) -> dict[str, float]:
    """Collect the figures of an iteration's last update.

    They are the figures of PolicyStats by name, and the step's loss, norm and rate.

    The gap to the engine is the first update's: later ones have moved off the policy that sampled.
    """
    from selfemo.megatron.step_stats import NOT_FIGURES

    first, last = stats[0], stats[-1]
    figures = {
        field.name: getattr(last, field.name)
        for field in dataclasses.fields(last)
        if field.name not in NOT_FIGURES
    }
    return {
        "loss": last.step.loss,
        "grad_norm": last.step.grad_norm,
        "learning_rate": last.step.learning_rate,
        "step_applied": all(s.step.applied for s in stats),
        **figures,
        "logprob_gap_max": first.logprob_gap_max,
        "logprob_gap_mean": first.logprob_gap_mean,
    }


def groups_without_ranking(groups: Sequence[ScoredGroup]) -> int:
    """Count the groups of weight 0, or without an advantage other than 0: they teach nothing."""
    return sum(group.loss_weight == 0 or not any(group.advantages) for group in groups)


def episode_records(
    iteration: int, episodes: Sequence[Episode], groups: Sequence[ScoredGroup], limit: int
) -> Iterator[dict[str, Any]]:
    """Write the first `limit` dialogues with every candidate, its rewards, its reading and its advantage."""
    scored = {(g.group.episode, g.group.turn, g.group.role): g for g in groups}
    for episode in episodes[:limit]:
        yield {
            "iteration": iteration,
            "source": episode.opening.source,
            "parent": episode.opening.parent,
            "seed_turns": len(episode.opening.turns),
            "dialogue": [
                {"speaker": t.speaker, "text": t.text, "labels": list(t.labels)} for t in episode.turns
            ],
            "groups": [_group_record(scored[g.episode, g.turn, g.role]) for g in episode.groups],
        }


def _group_record(scored: ScoredGroup) -> dict[str, Any]:
    group = scored.group
    return {
        "role": group.role,
        "turn": group.turn,
        "speaker": group.speaker,
        "gold": list(group.gold or ()),
        "target": list(group.target or ()),
        "consensus": list(group.consensus.labels),
        "taught": list(group.taught or ()),
        "agreement": group.consensus.agreement,
        "candidates": [
            {
                "view": sample.view,
                "text": sample.text,
                "read": list(sample.reading.labels) if isinstance(sample.reading, Answer) else [],
                "failed_gates": list(sample.gates),
                "score": score,
                "rewards": dict(zip(scored.names, rewards, strict=True)),
                "total": total,
                "advantage": advantage,
                "weight": scored.loss_weight,
            }
            for sample, score, rewards, total, advantage in zip(
                group.samples, scored.scores, scored.rewards, scored.totals, scored.advantages, strict=True
            )
        ],
    }


def outcome_counts(outcomes: Mapping[tuple[bool, str], int]) -> dict[str, dict[str, int]]:
    """Sort the flywheel's decisions: {"kept": {reason: groups}, "dropped": {reason: groups}}."""
    return {
        name: {reason: count for (kept, reason), count in sorted(outcomes.items()) if kept == wanted}
        for name, wanted in (("kept", True), ("dropped", False))
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
