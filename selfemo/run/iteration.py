"""Turns one SELF-GRPO iteration into records: its figures in metrics.jsonl, and a dialogue in samples.jsonl.

Figures are means over the iteration's samples of one role, so that a curve tells which of the two roles
changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfemo.emotions.answer import Answer
from selfemo.process.reduction import OneRank
from selfemo.rewards.components import COMPONENTS, metric_name
from selfemo.rewards.scoring import ScoredGroup
from selfemo.selfplay.records import ROLES, Episode

if TYPE_CHECKING:  # records of a run can be made without torch
    from selfemo.megatron.step_stats import PolicyStats

COUNTS = ("samples", "samples_trained", "tokens", "groups", "groups_without_ranking")
ONE_RANK = OneRank()


def iteration_figures(groups: Sequence[ScoredGroup], over: OneRank) -> dict[str, float]:
    """Compute the figures of an iteration's groups, with advantages.

    Args:
        groups: those that this rank answers for.
        over: adds up over the ranks, so that the figures are those of all groups.
    """
    samples = [sample for group in groups for sample in group.group.samples]
    trained = [group.group.samples for group in groups if group.loss_weight != 0]
    counts = (
        len(samples),
        sum(map(len, trained)),
        sum(len(sample.completion_ids) for sample in samples),
        len(groups),
        groups_without_ranking(groups),
    )
    totals = [total for group in groups for total in group.totals]
    return {
        **means({"reward": totals}, over),
        **{f"reward_{name}": value for name, value in component_means(groups, over).items()},
        **role_figures(groups, over),
        **dict(zip(COUNTS, over.counts(counts), strict=True)),
    }


def component_means(groups: Sequence[ScoredGroup], over: OneRank = ONE_RANK) -> dict[str, float]:
    """Mean of every reward component over the samples that have it, by `metric_name`."""
    values: dict[str, list[float]] = {}
    for role, components in COMPONENTS.items():
        mine = [group for group in groups if group.group.role == role]
        for component in components:
            values.setdefault(metric_name(component, role), []).extend(
                value for group in mine for value in group.component(component.name)
            )
    return means(values, over)


def role_figures(groups: Sequence[ScoredGroup], over: OneRank = ONE_RANK) -> dict[str, float]:
    """Compute figures per role.

    They are the mean smoothed IoU of its samples, the mean agreement of its groups, and completion lengths in
    tokens.
    """
    columns: dict[str, Sequence[float]] = {}
    longest = []
    for role in ROLES:
        mine = [group for group in groups if group.group.role == role]
        samples = [sample for group in mine for sample in group.group.samples]
        lengths = [len(sample.completion_ids) for sample in samples]
        longest.append(max(lengths, default=0))
        columns |= {
            f"siou_{role}": [score for group in mine for score in group.scores],
            f"agreement_{role}": [group.group.consensus.agreement for group in mine],
            f"prompt_tokens_{role}": [len(sample.prompt_ids) for sample in samples],
            f"completion_tokens_{role}": lengths,
            f"unfinished_share_{role}": [not sample.finished for sample in samples],
        }
    figures = means(columns, over)
    for role, length in zip(ROLES, over.largest(longest), strict=True):
        if f"siou_{role}" in figures:
            figures[f"completion_tokens_max_{role}"] = length
    return figures


def means(columns: Mapping[str, Sequence[float]], over: OneRank) -> dict[str, float]:
    """Average each column over the ranks; a column without a value on any rank is left out."""
    sums = over.sums(list(columns.values()))
    counts = over.counts([len(column) for column in columns.values()])
    return {name: total / count for name, total, count in zip(columns, sums, counts, strict=True) if count}


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
