"""Votes over a group of answers: the labels that win, and how far the answers agree.

If the answers come from several views of the turn, each view has one vote, however many answers it gave: the
shares of a view's answers are added up over views.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from selfemo.emotions.answer import MAX_LABELS, Answer, Reading
from selfemo.emotions.similarity import SmoothedIoU


@dataclass(frozen=True)
class Consensus:
    """The vote of a group's samples."""

    labels: tuple[str, ...]
    """Winning labels, primary first; empty only if no sample was in the grammar."""
    votes: tuple[tuple[str, int], ...]
    """(label, samples that named it), the label with the largest share first."""
    answers: int
    """Number of samples in the grammar."""
    agreement: float
    """Mean pairwise smoothed IoU over all samples, with several views over pairs of different ones; a pair
    with a format failure counts 0."""
    shares: tuple[tuple[str, float], ...] = ()
    """(label, share of the answers that named it, the mean over views that answered), in order of `votes`."""
    of_other_views: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(view, winners among the answers of the other views); empty unless `vote` was asked for it."""

    def reference(self, view: str) -> tuple[str, ...]:
        """Return the set that a view's answers are compared with.

        It is the other views' winners if they are known, else `labels`.
        """
        return dict(self.of_other_views).get(view, self.labels)


def vote(
    readings: Sequence[Reading],
    score: SmoothedIoU,
    views: Sequence[str] = (),
    other_views: bool = False,
) -> Consensus:
    """Count votes label by label.

    Every answer gives one vote, divided by the number of its view's answers, to each label it names.

    A label wins with more than half of the votes. If no label has that many, the one with most votes wins
    alone. At most three win. Ties are broken by the votes as primary label, then by those of the first view,
    of the second and so on, then alphabetically, so that the result does not depend on the order of a view's
    samples.

    Args:
        views: the view of each reading, in the order of their precedence; empty for a single view.
        other_views: also find, for each view, what the others agree on.
    """
    by_view = _answers_by_view(readings, views)
    # a view's vote in equal parts: its answers divide it without rounding
    whole = lcm(*map(len, by_view.values()))
    counts = [Counter([label for a in answers for label in a.labels]) for answers in by_view.values()]
    firsts = [Counter([answer.primary for answer in answers]) for answers in by_view.values()]
    if len(counts) == 1:  # one view, whose answers have one vote each
        named, primary, total = counts[0], firsts[0], counts[0]
    else:
        parts = [whole // len(answers) for answers in by_view.values()]
        named, primary, total = _weighed(counts, parts), _weighed(firsts, parts), sum(counts, Counter[str]())
    ranked = sorted(
        named, key=lambda label: (-named[label], -primary[label], [-count[label] for count in counts], label)
    )
    votes = whole * len(by_view)
    winners = [label for label in ranked if 2 * named[label] > votes] or ranked[:1]
    return Consensus(
        labels=tuple(winners[:MAX_LABELS]),
        votes=tuple((label, total[label]) for label in ranked),
        answers=sum(map(len, by_view.values())),
        agreement=score.mean_pairwise(readings, views),
        shares=tuple((label, named[label] / votes) for label in ranked),
        of_other_views=_without_each(readings, score, views) if other_views else (),
    )


def _weighed(counts: Sequence[Counter[str]], parts: Sequence[int]) -> Counter[str]:
    """Add up each view's counts, times the votes of one of its answers."""
    found = Counter[str]()
    for count, part in zip(counts, parts, strict=True):
        found.update({label: part * times for label, times in count.items()})
    return found


def _answers_by_view(readings: Sequence[Reading], views: Sequence[str]) -> dict[str, list[Answer]]:
    """Sort the answers by view, in the order of `views`; views without any are left out.

    All answers are under "" if no view is named.
    """
    found: dict[str, list[Answer]] = {view: [] for view in views or ("",)}
    for reading, view in zip(readings, views or ("",) * len(readings), strict=True):
        if isinstance(reading, Answer):
            found[view].append(reading)
    return {view: answers for view, answers in found.items() if answers}


def _without_each(
    readings: Sequence[Reading], score: SmoothedIoU, views: Sequence[str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return (view, winners among the answers of the other views) of each view."""
    found = []
    for left_out in dict.fromkeys(views):
        kept = [i for i, view in enumerate(views) if view != left_out]
        others = vote([readings[i] for i in kept], score, [views[i] for i in kept])
        found.append((left_out, others.labels))
    return tuple(found)
