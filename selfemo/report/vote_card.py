"""Writes into a model's card what voting over several views brings, and how to have it.

A run leaves the part unmeasured; `selfemo eval --views` replaces it by its figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfemo.common.files import replace_text
from selfemo.evaluation.intervals import Interval
from selfemo.evaluation.voting import VotingReport

CARD_NAME = "README.md"
BEGIN, END = "<!-- vote over views: begin -->", "<!-- vote over views: end -->"
"""Lines around the part that `record_vote` replaces."""
METRICS = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1"}
NOT_MEASURED = "What the vote brings was not measured; the first command measures it and writes it here."


def vote_part(measured: str = NOT_MEASURED) -> str:
    """Write the card's part about voting, with the lines around it."""
    lines = [
        BEGIN,
        "## Voting over views",
        "",
        "Showing a line in several views and adding up their labels needs no training. It costs one prompt "
        "for each view:",
        "",
        "```sh",
        "selfemo eval --model DIR --views 4   # the vote beside one view, on the run's own split",
        "selfemo chat --model DIR --views 4",
        "```",
        "",
        measured,
        END,
    ]
    return "\n".join(lines)


def record_vote(model_dir: Path, turns: str, alone: Sequence[Interval], voting: VotingReport) -> bool:
    """Write into a model's card what voting over views brought.

    Args:
        turns: the evaluated turns in words, such as "everyday dev, 120 turns".
        alone: the plain reading's figures.

    Returns:
        Whether the model has a card with such a part.

    Raises:
        OSError: the card cannot be written; it is unchanged.
    """
    path = model_dir / CARD_NAME
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError:  # somebody else's
        return False
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return False
    replace_text(path, before + vote_part(_measured(turns, alone, voting)) + after)
    return True


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def _measured(turns: str, alone: Sequence[Interval], voting: VotingReport) -> str:
    vote = f"vote over {len(voting.views)} views ({', '.join(voting.views)})"
    rows = [
        ["one view", *(f"{i.value:.3f}" for i in _main(alone))],
        [vote, *(f"{i.value:.3f}" for i in _main(voting.intervals))],
        ["difference", *(f"{i.value:+.3f} [{i.low:+.3f}, {i.high:+.3f}]" for i in _main(voting.differences))],
    ]
    note = f"{turns}; 95% intervals of the paired difference, over dialogues."
    return f"{table(['', *METRICS.values()], rows)}\n\n{note}"


def _main(intervals: Sequence[Interval]) -> list[Interval]:
    by_metric = {interval.metric: interval for interval in intervals}
    return [by_metric[metric] for metric in METRICS]
