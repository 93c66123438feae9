"""Lets a teacher read real turns without labels, once per round: one greedy answer in each view, and a vote
over the answers or over each view's probabilities of the labels, in which the line's words may have a say.

Replies that a round kept are read in the same way (selfemo/run/rounds.py).

A group's own consensus moves with every step and sharpens what the model thinks already. The teacher's is
taken from weights that stay as they are for a round (docs/method.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import batched
from math import exp

from selfemo.emotions.answer import MAX_LABELS
from selfemo.process.reduction import OneRank
from selfemo.selfplay.consensus import Consensus
from selfemo.selfplay.episode import SelfPlay, view_seed
from selfemo.selfplay.records import Group, Opening, Sample
from selfemo.selfplay.roles import GREEDY
from selfemo.selfplay.views import view_named
from selfemo.selfplay.word_evidence import weigh_in

ONE_RANK = OneRank()
READ_AT_ONCE = 4096
"""Prompts of one generator call: it must end within timeout_s, however many turns a corpus has."""
STEPS = 100
RATE = 0.5
SHARE_DIGITS = 6
"""Decimal digits of a taught share."""
LARGEST_WEIGHT = 6.0
"""Label weights lie between its inverse and this: a label that is hardly ever read is not made up."""


@dataclass(frozen=True)
class TaughtTurns:
    """What the teacher read in one round."""

    groups: tuple[Group, ...]
    """One per turn that this rank answers for, of one greedy answer per view; its consensus carries the
    votes."""
    labels: tuple[tuple[str, ...], ...]
    """The labels taught for each of these turns, primary first; empty if no answer was in the grammar."""
    shares: tuple[tuple[tuple[str, float], ...], ...]
    """(label, share of the aligned vote) of each turn, the largest first; empty where the labels are
    annotated, or nothing is taught."""
    weights: tuple[tuple[str, float], ...]
    """(label, weight) of the alignment; empty without it."""


@dataclass(frozen=True)
class TeacherFigures:
    """What the teacher read in one round, over all ranks."""

    turns: int
    agreement: float
    """Mean over the turns, of the answers in different views."""
    first: Mapping[str, int]
    """Turns by the primary label that is taught; labels without any are left out."""
    weights: tuple[tuple[str, float], ...]
    """As TaughtTurns.weights."""


def read_turns(play: SelfPlay, openings: Sequence[Opening], iteration: int) -> list[Group]:
    """Read the last turn of each opening in every view of the run, READ_AT_ONCE prompts in a generator call.

    Args:
        iteration: the round's first; openings are numbered after its episodes.
    """
    views = play.config.views
    asked = [(opening, view) for opening in openings for view in views]

    def show(item: tuple[Opening, str]) -> tuple[int, ...]:
        opening, view = item
        seed = view_seed(play.run_seed, iteration, opening.index, 0, view)
        return play.prompts.recognize(opening.turns, view_named(view), seed)

    scored_ids = play.prompts.first_ids if play.config.teacher_votes == "probabilities" else ()
    requests = [play.recognizer.greedy_request(prompt, scored_ids) for prompt in play.deal(show, asked)]
    completions = [c for some in batched(requests, READ_AT_ONCE) for c in play.generator.generate(some)]
    texts = play.deal(play.recognizer.read, completions)
    samples = [
        Sample(r.prompt_ids, c.token_ids, c.logprobs, r.seed, text, c.finished, reading, view=view)
        for r, c, (text, reading), (_, view) in zip(requests, completions, texts, asked, strict=True)
    ]
    rows = [samples[i : i + len(views)] for i in range(0, len(samples), len(views))]
    votes = play.deal(play.vote, rows)
    if scored_ids:
        scores = [c.scored_logprobs for c in completions]
        of_views = [scores[i : i + len(views)] for i in range(0, len(scores), len(views))]
        shares = [label_shares(v, play.prompts.labels) for v in of_views]
        if play.words:
            evidence = play.deal(play.words.log_shares, [opening.turns[-1].text for opening in openings])
            weight = play.config.teacher_words
            shares = [weigh_in(own, told, weight) for own, told in zip(shares, evidence, strict=True)]
        votes = [weighed(vote, own) for vote, own in zip(votes, shares, strict=True)]
    return [
        Group(
            role="recognizer",
            iteration=iteration,
            episode=opening.index,
            turn=0,
            source=opening.source,
            parent=opening.parent,
            context=opening.turns,
            speaker=opening.turns[-1].speaker,
            gold=opening.turns[-1].labels or None,
            target=None,
            max_tokens=play.config.max_recognizer_tokens,
            temperature=GREEDY,
            samples=tuple(row),
            consensus=consensus,
        )
        for opening, row, consensus in zip(openings, rows, votes, strict=True)
    ]


def label_shares(logprobs: Sequence[Sequence[float]], labels: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Average the views' distributions over the labels, each normalised to 1.

    Args:
        logprobs: per view, the natural-log probability of each label's first token.

    Returns:
        (label, share), the largest first; of equal ones, in the order of `labels`.
    """
    views = [[exp(value - max(view)) for value in view] for view in logprobs]
    normal = [[value / sum(view) for value in view] for view in views]
    shares = [sum(column) / len(normal) for column in zip(*normal, strict=True)]
    return tuple(sorted(zip(labels, shares, strict=True), key=lambda pair: -pair[1]))


def weighed(consensus: Consensus, shares: tuple[tuple[str, float], ...]) -> Consensus:
    """Put the likeliest label of `shares` first among the winners of a vote, and keep `shares` with it.

    A vote without any answer in the grammar stays as it is: a model that does not answer teaches nothing.
    """
    if not consensus.labels:
        return consensus
    return replace(consensus, labels=_led_by(shares[0][0], consensus.labels), shares=shares)


def labels_to_teach(
    groups: Sequence[Group], shares: Mapping[str, float], align: float, over: OneRank = ONE_RANK
) -> TaughtTurns:
    """Decide on the labels of each turn: its annotation if the run reveals it, else the consensus.

    Args:
        groups: those that this rank answers for.
        shares: of each label among annotated turns.
        align: exponent of the weights under which the likeliest label has these shares; 0: no weights.
        over: adds up over the ranks that have groups.
    """
    votes = [dict(group.consensus.shares) for group in groups]
    weights = alignment_weights(votes, shares, over) if align else {}
    weights = {label: weight**align for label, weight in weights.items()}
    labels = tuple(group.gold or _weighted(group, weights) for group in groups)
    aligned = tuple(() if group.gold else _aligned(group, weights) for group in groups)
    pairs = zip(groups, labels, strict=True)
    taught = tuple(replace(group, taught=None if group.gold else found) for group, found in pairs)
    return TaughtTurns(taught, labels, aligned, tuple(sorted(weights.items())))


def teacher_figures(read: TaughtTurns, labels: Sequence[str], over: OneRank = ONE_RANK) -> TeacherFigures:
    """Sum up what was read, over the ranks that have turns. `labels` is the closed set."""
    own = Counter(taught[0] for taught in read.labels if taught)
    turns, *counts = over.counts([len(read.labels), *(own[label] for label in labels)])
    (agreement,) = over.sums([[group.consensus.agreement for group in read.groups]])
    first = {label: count for label, count in zip(labels, counts, strict=True) if count}
    return TeacherFigures(turns, agreement / max(1, turns), first, read.weights)


def alignment_weights(
    votes: Sequence[Mapping[str, float]], shares: Mapping[str, float], over: OneRank = ONE_RANK
) -> dict[str, float]:
    """Find a weight for each label, so that each is the likeliest of as many turns as `shares` says.

    Each step multiplies a weight by (wanted share / found share) ** RATE; the step with the smallest error is
    returned. Aligning the votes' sums instead of their winners would change the turns that are clear already
    (docs/method.md).

    Args:
        votes: per turn of this rank, the share of answers that named each label.
        shares: wanted; labels of share 0 are left alone.
        over: adds up over the ranks that have turns.
    """
    weights = {label: 1.0 for label, share in shares.items() if share > 0}
    best, smallest = dict(weights), float("inf")
    alike = Counter(tuple(vote.items()) for vote in votes if vote)  # of thousands of votes, few differ
    (turns,) = over.counts([alike.total()])
    for _ in range(STEPS if turns else 0):
        winners = Counter[str]()
        for vote, times in alike.items():
            winners[_likeliest(dict(vote), weights)] += times
        counts = over.counts([winners[label] for label in weights])
        found = {label: count / turns for label, count in zip(weights, counts, strict=True)}
        error = sum(abs(found[label] - shares[label]) for label in weights)
        if error < smallest:
            best, smallest = dict(weights), error
        for label in weights:
            step = (shares[label] / max(found[label], 0.5 / turns)) ** RATE
            weights[label] = min(LARGEST_WEIGHT, max(1 / LARGEST_WEIGHT, weights[label] * step))
    return best


def _weighted(group: Group, weights: Mapping[str, float]) -> tuple[str, ...]:
    consensus = group.consensus
    if not weights or not consensus.labels:
        return consensus.labels
    return _led_by(_likeliest(dict(consensus.shares), weights), consensus.labels)


def _aligned(group: Group, weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Return the vote's shares times the weights, normalised; rounded, so that ranks can send integers."""
    if not group.consensus.labels:
        return ()
    parts = {label: share * weights.get(label, 1.0) for label, share in group.consensus.shares}
    total = sum(parts.values())
    shares = ((label, round(part / total, SHARE_DIGITS)) for label, part in parts.items())
    return tuple(sorted((pair for pair in shares if pair[1]), key=by_share))


def by_share(pair: tuple[str, float]) -> tuple[float, str]:
    """Order (label, share) by the share, the largest first; equal ones by the alphabet."""
    return -pair[1], pair[0]


def _led_by(first: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    if first == labels[0]:
        return labels
    return (first, *(label for label in labels[1:] if label != first))[:MAX_LABELS]


def _likeliest(vote: Mapping[str, float], weights: Mapping[str, float]) -> str:
    return max(vote, key=lambda label: vote[label] * weights.get(label, 1.0))
