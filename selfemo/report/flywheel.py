"""Shows the flywheel on the page: kept and dropped groups with the reasons, and lines of descent of
kept dialogues.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from selfemo.common.errors import UserError
from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.record import Record
from selfemo.flywheel.store import Total
from selfemo.records.directory import flywheel_files
from selfemo.records.reading import RunRecords
from selfemo.report.charts import SERIES, SIZE_IN, SOFT, Chart, as_text, legend, make_chart

MAX_CHAINS = 3
"""Longest lines of descent that the page shows in full."""
MAX_BARS = 60
"""Most iterations that are drawn as bars. More are drawn as areas."""
MAX_REASONS = 5
"""Most reasons for dropping that have a colour of their own: the most frequent ones. The others are
summed.
"""


@dataclass(frozen=True)
class ReasonRow:
    """Number of groups of one outcome, by role."""

    kept: bool
    reason: str
    recognizer: int
    responder: int

    @property
    def count(self) -> int:
        """Groups of both roles."""
        return self.recognizer + self.responder


@dataclass(frozen=True)
class FlywheelView:
    """The flywheel's figures and charts on the page."""

    offered: int
    kept: int
    reasons: tuple[ReasonRow, ...]
    labels: tuple[tuple[str, int, int], ...]
    """(label, kept recognizer records, kept responder records), most frequent first."""
    charts: tuple[Chart, ...]
    generations: tuple[tuple[int, int, int], ...]
    """(generation, records, of them kept). Generation 0 descends from a real dialogue directly, 1 from
    a kept record of generation 0, and so on.
    """
    chains: tuple[tuple[Record, ...], ...]
    """Longest lines of descent, oldest record first."""
    sources: int
    """Number of real dialogues that kept records descend from."""


def flywheel_view(records: RunRecords) -> FlywheelView | None:
    """Read a run's flywheel; None if it has none."""
    files = flywheel_files(records.root)
    if not files:
        return None
    with closing(JoinedStores(files)) as store:
        totals, links = store.totals(), store.lineage()
        generation = generations({record_id: parent for record_id, parent, _, _ in links})
        chains = tuple(tuple(map(store.read, chain)) for chain in longest_chains(links, generation))
    offered, kept = (
        Counter(generation.values()),
        Counter(generation[i] for i, _, is_kept, _ in links if is_kept),
    )
    return FlywheelView(
        offered=sum(t.count for t in totals),
        kept=sum(t.count for t in totals if t.kept),
        reasons=tuple(_reasons(totals)),
        labels=tuple(_labels(totals)),
        charts=tuple(_charts(records)),
        generations=tuple((depth, offered[depth], kept[depth]) for depth in sorted(offered)),
        chains=chains,
        sources=len({source for _, _, is_kept, source in links if is_kept}),
    )


def generations(parents: Mapping[int, int | None]) -> dict[int, int]:
    """Return {record: number of records that it descends from}.

    A parent is older than its children, so its id is smaller.

    Raises:
        UserError: a record descends from one that is not there.
    """
    found: dict[int, int] = {}
    for record_id in sorted(parents):
        parent = parents[record_id]
        if parent is not None and parent not in found:
            raise UserError(
                f"flywheel: record {record_id} descends from record {parent}, which no file of the run "
                "holds: restore all of its flywheel files"
            )
        found[record_id] = 0 if parent is None else found[parent] + 1
    return found


def longest_chains(
    links: Sequence[tuple[int, int | None, bool, str]], generation: Mapping[int, int]
) -> list[list[int]]:
    """Return the record ids of the longest lines of descent that end in a kept record, oldest record first.

    No two come from the same real dialogue.
    """
    parents = {record_id: parent for record_id, parent, _, _ in links}
    chains: dict[str, list[int]] = {}
    for record_id, _, is_kept, source in sorted(links, key=lambda link: (-generation[link[0]], link[0])):
        if generation[record_id] and is_kept and source not in chains and len(chains) < MAX_CHAINS:
            chain: list[int] = []
            step: int | None = record_id
            while step is not None:
                chain.append(step)
                step = parents[step]
            chains[source] = chain[::-1]
    return list(chains.values())


def _reasons(totals: Sequence[Total]) -> list[ReasonRow]:
    counts: Counter[tuple[bool, str, str]] = Counter()
    for total in totals:
        counts[total.kept, total.reason, total.role] += total.count
    outcomes = {(kept, reason) for kept, reason, _ in counts}
    rows = [
        ReasonRow(kept, reason, counts[kept, reason, "recognizer"], counts[kept, reason, "responder"])
        for kept, reason in outcomes
    ]
    return sorted(rows, key=lambda row: (not row.kept, -row.count, row.reason))


def _labels(totals: Sequence[Total]) -> list[tuple[str, int, int]]:
    counts: Counter[tuple[str, str]] = Counter()
    for total in totals:
        if total.kept:
            counts[total.label, total.role] += total.count
    rows = [
        (label, counts[label, "recognizer"], counts[label, "responder"])
        for label in {label for label, _ in counts}
    ]
    return sorted(rows, key=lambda row: (-row[1] - row[2], row[0]))


def _charts(records: RunRecords) -> list[Chart]:
    events = [
        (event["iteration"], event["flywheel"]) for event in records.of("iteration") if "flywheel" in event
    ]
    charts = []
    for outcome, title in (("kept", "Groups kept, by reason"), ("dropped", "Groups dropped, by reason")):
        totals = Counter[str]()
        for _, outcomes in events:
            totals.update(outcomes[outcome])
        if totals:
            charts.append(
                _stacked(title, [(iteration, outcomes[outcome]) for iteration, outcomes in events], totals)
            )
    return charts


def _stacked(title: str, counts: Sequence[tuple[int, Mapping[str, int]]], totals: Counter[str]) -> Chart:
    named = [reason for reason, _ in totals.most_common(MAX_REASONS)]
    series = {reason: [row.get(reason, 0) for _, row in counts] for reason in named}
    if len(totals) > MAX_REASONS:
        series["other reasons"] = [
            sum(n for reason, n in row.items() if reason not in named) for _, row in counts
        ]

    def draw(axes: Axes) -> None:
        steps = [iteration for iteration, _ in counts]
        colours = [*SERIES[:MAX_REASONS], SOFT]
        if len(steps) > MAX_BARS:
            axes.stackplot(steps, *series.values(), labels=list(map(as_text, series)), colors=colours)
        else:
            below = [0] * len(steps)
            for (reason, values), colour in zip(series.items(), colours, strict=False):
                axes.bar(steps, values, bottom=below, label=as_text(reason), color=colour, width=0.7)
                below = [a + b for a, b in zip(below, values, strict=True)]
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.set_xlabel("iteration")
        legend(axes)

    return make_chart(
        title,
        draw,
        "; ".join(f"{reason} {count}" for reason, count in totals.most_common()),
        (SIZE_IN[0], 2.6),
    )
