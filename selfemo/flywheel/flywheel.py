"""Judges every group of a run, records it with its provenance, and offers the kept dialogues as openings.

A group is judged on the rank that answers for it. Where a decision depends on what was kept before, the first
rank decides for all, in the order of the iteration. Of kept records every rank gets what openings and lessons
need; the records themselves stay with the engine that made them, whose first rank writes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from selfemo.config.schema import FlywheelConfig
from selfemo.corpora.conversation import Corpus, Turn
from selfemo.corpora.overlap import HeldOutTexts, held_out_texts
from selfemo.emotions.answer import Answer, Reading
from selfemo.flywheel.admission import Admission, Candidate
from selfemo.flywheel.delivered import Delivered, DeliveredItems
from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.lessons import KEPT_REPLIES, Lessons, consensus_on, reply_of
from selfemo.flywheel.peers import ALONE, Alone
from selfemo.flywheel.record import Record, candidates_of, view_prompts_of
from selfemo.flywheel.rule import (
    CONSENSUS,
    READINGS,
    DropReason,
    Evidence,
    KeepReason,
    Place,
    agreement_on,
    gather_evidence,
    judge,
    judge_reading,
)
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.rewards.scoring import Rewards, ScoredGroup
from selfemo.selfplay.openings import KeptDialogue
from selfemo.selfplay.prompts import clean_line
from selfemo.selfplay.records import Group
from selfemo.selfplay.teacher import TaughtTurns

OPENING_RECORDS = 4096
"""Number of kept recognizer records, the newest, that openings are drawn from. Bounds memory, and drops the
samples of the oldest weights."""
OUTCOMES = (
    *((True, reason) for reason in get_args(KeepReason)),
    *((False, reason) for reason in get_args(DropReason)),
)
"""Every decision that a record may hold."""


@dataclass(frozen=True)
class FlywheelCounts:
    """Numbers of groups judged and groups kept, over the whole run."""

    offered: int
    kept: int


class Flywheel:
    """Judges this rank's groups, remembers what all ranks kept and, on a writing rank, stores its engine's.

    With several ranks `offer`, `teach` and `outcomes` are collective.
    """

    def __init__(
        self,
        config: FlywheelConfig,
        corpus: Corpus,
        rewards: Rewards,
        path: Path,
        is_writer: bool,
        peers: Alone = ALONE,
        files: Sequence[Path] | None = None,
        has_reader: bool = False,
    ) -> None:
        """Open the flywheel, and load the records that its files already hold.

        Args:
            corpus: its dev and test texts, and those it bars, never enter; its training texts fix which words
                are rare.
            path: the SQLite file of this rank's engine; a writer creates it and appends to it.
            peers: the other ranks.
            files: every file of the run's flywheel; None: `path` alone, if it exists.
            has_reader: a teacher reads kept replies (`read_back`) before they teach.

        Raises:
            UserError: a store cannot be opened (see FlywheelStore).
        """
        self._config, self._peers, self._has_reader = config, peers, has_reader
        self._score = rewards.score
        self._held_out = HeldOutTexts(held_out_texts(corpus))
        known = (turn.text for c in corpus.split("train") for turn in c.turns)
        self._admission = Admission(config, rewards.label_shares, known)
        self._offered = self._readings = self._last_id = 0
        self._continuable: deque[tuple[int, Delivered[KeptDialogue]]] = deque(maxlen=OPENING_RECORDS)
        self._recorded: set[int] = set()
        self.lessons = Lessons(has_reader)
        """What kept records teach."""
        if files is None:
            files = [path] if path.is_file() else []
        if config.enabled and files:
            self._recall(files)
        self._store = (
            FlywheelStore(path, writable=True, labels=corpus.labels) if config.enabled and is_writer else None
        )

    @property
    def counts(self) -> FlywheelCounts:
        """Numbers of groups judged and kept so far, with those of an earlier part of a resumed run.

        Only the first rank knows how many were kept.
        """
        return FlywheelCounts(self._offered, self._admission.kept + self._readings)

    @property
    def last_id(self) -> int:
        """The greatest record id so far, over all ranks; 0 before the first."""
        return self._last_id

    @property
    def role_counts(self) -> dict[str, dict[str, int]]:
        """Per role: groups that passed the rule (some of them over a label's cap), and groups kept.

        Only the first rank knows them.
        """
        return self._admission.role_counts

    def outcomes(self, iteration: int) -> dict[tuple[bool, str], int]:
        """Count the decisions on an iteration's groups by (kept, reason), over all ranks.

        Decisions of an earlier part of a resumed run are counted too.
        """
        if not self._config.enabled:
            return {}
        mine = self._store.outcomes(iteration) if self._store is not None else {}
        totals = self._peers.totals([mine.get(outcome, 0) for outcome in OUTCOMES])
        return {outcome: count for outcome, count in zip(OUTCOMES, totals, strict=True) if count}

    def offer(self, groups: Sequence[ScoredGroup], weight_version: int) -> list[Record]:
        """Judge this rank's groups of one iteration and record them all; returns their records, in order.

        Groups of an episode are on one rank. An iteration is offered once, whole. If it is recorded already
        (it ran before a resume), nothing is recorded again. Nothing happens if the flywheel is disabled.
        """
        if not self._config.enabled:
            return []
        evidence = gather_evidence(groups)
        fresh = [scored for scored in groups if scored.group.iteration not in self._recorded]
        before, total = self._peers.numbered(len(fresh))
        passed = [
            self._judged(scored, self._last_id + before + number, weight_version, evidence)
            for number, scored in enumerate(fresh, 1)
        ]
        records = self._admitted(passed)
        self._offered, self._last_id = self._offered + total, self._last_id + total
        self._recorded.update(scored.group.iteration for scored in fresh)
        self._remember([record for record in records if record.kept])
        self._append(self._peers.to_writer(records))
        return records

    def teach(self, groups: Sequence[ScoredGroup], read: TaughtTurns, weight_version: int) -> None:
        """Record a teacher's readings of real turns, and keep those that have labels.

        Args:
            groups: `read`'s, scored: those that this rank answers for.
        """
        records = self._readings_of(groups, weight_version)
        self._take_up_readings(
            [
                replace(
                    record,
                    labels=taught,
                    taught_shares=shares,
                    kept=bool(taught),
                    reason=CONSENSUS if taught else "no answer",
                )
                for record, taught, shares in zip(records, read.labels, read.shares, strict=True)
            ]
        )

    def read_back(self, groups: Sequence[ScoredGroup], weight_version: int) -> int:
        """Record a teacher's readings of kept replies; those that are read as they were meant teach.

        Args:
            groups: those that this rank answers for: of `Reply.opening`s, with the emotions that each was
                written for as target.

        Returns:
            Number of replies of all ranks that were read as they were meant.
        """
        found = []
        for scored, record in zip(groups, self._readings_of(groups, weight_version), strict=True):
            kept, reason = judge_reading(scored, self._config, self._score)
            labels = record.target if kept else scored.group.consensus.labels
            found.append(replace(record, labels=labels, kept=kept, reason=reason))
        return self._take_up_readings(found)

    def _readings_of(self, groups: Sequence[ScoredGroup], weight_version: int) -> list[Record]:
        """Make the records of a teacher's readings, not yet judged, with the next numbers."""
        before, total = self._peers.numbered(len(groups))
        first = self._last_id + before + 1
        self._offered, self._last_id = self._offered + total, self._last_id + total
        return [
            make_record(scored, record_id, weight_version, scored.group.consensus.agreement)
            for record_id, scored in enumerate(groups, first)
        ]

    def _take_up_readings(self, records: Sequence[Record]) -> int:
        """Record a teacher's readings; returns how many of all ranks' are kept."""
        before = self._readings
        self._remember([record for record in records if record.kept], by_teacher=True)
        self._append(self._peers.to_writer(records))
        return self._readings - before

    def kept_dialogues(self, before_iteration: int | None = None) -> Sequence[KeptDialogue]:
        """Return the dialogues that openings may continue, oldest first; the same on every rank.

        Args:
            before_iteration: only records of earlier iterations, as a resumed run needs; None for all.
        """
        return DeliveredItems(
            [
                kept
                for iteration, kept in self._continuable
                if before_iteration is None or iteration < before_iteration
            ]
        )

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _judged(
        self, scored: ScoredGroup, record_id: int, weight_version: int, evidence: dict[Place, Evidence]
    ) -> Record:
        """Make a group's record, and decide on it as far as that depends on its own episode alone."""
        kept, reason = judge(scored, evidence, self._config, self._has_reader)
        if kept and self._held_out.bars(_text_of(scored), scored.group.context):
            kept, reason = False, "held-out text"
        agreement = agreement_on(scored, evidence)
        return make_record(scored, record_id, weight_version, agreement, kept, reason)

    def _admitted(self, passed: Sequence[Record]) -> list[Record]:
        """Decide on records that passed the rule, in the order of all ranks' records."""
        eligible = [record for record in passed if record.kept and record.reason != CONSENSUS]
        asked = self._considered(eligible)
        words = [self._admission.word_set(record.role, record.text) for record in asked]
        candidates: list[Candidate] = [
            (record.role, record.labels[0], word_set) for record, word_set in zip(asked, words, strict=True)
        ]
        decisions = self._peers.decided(self._admission.decide, candidates)
        dropped: dict[int, DropReason | None] = {record.record_id: "not considered" for record in eligible}
        dropped |= {record.record_id: reason for record, reason in zip(asked, decisions, strict=True)}
        return [
            replace(record, kept=False, reason=reason)
            if (reason := dropped.get(record.record_id))
            else record
            for record in passed
        ]

    def _considered(self, eligible: Sequence[Record]) -> list[Record]:
        """Choose the records to decide on: all, or of all ranks' the limit's number, evenly spaced."""
        limit = self._config.candidates_per_iteration
        before, total = self._peers.numbered(len(eligible))
        if total <= limit:
            return list(eligible)
        return [
            record
            for number, record in enumerate(eligible, before)
            if (number + 1) * limit // total > number * limit // total
        ]

    def _remember(self, kept: Sequence[Record], by_teacher: bool = False) -> None:
        """Take up what all ranks kept, as far as openings and lessons need it.

        Args:
            by_teacher: they are a teacher's readings, which open nothing.
        """
        readings = [record for record in kept if record.reason in READINGS]
        (count,) = self._peers.totals([len(readings)])
        self._readings += count
        if not by_teacher:
            read = [r for r in kept if r.role == "recognizer" and r.reason not in READINGS]
            dialogues = [(record.iteration, self._dialogue(record)) for record in read]
            self._continuable.extend(self._peers.newest(dialogues, OPENING_RECORDS))
        agreed = [(record.iteration, placed) for record in readings if (placed := consensus_on(record))]
        for made, placed in self._peers.readings(agreed):
            self.lessons.take_up(made, *placed)
        replies = [(record.iteration, reply) for record in kept if (reply := reply_of(record))]
        for made, delivered in self._peers.newest(replies, KEPT_REPLIES):
            self.lessons.take_up_reply(made, delivered, by_teacher)

    def _append(self, records: Sequence[Record]) -> None:
        store = self._store
        self._peers.together(lambda: None if store is None else _append_to(store, records))

    def _dialogue(self, record: Record) -> KeptDialogue:
        *before, last = record.dialogue
        labels = last.labels if self._config.trust_labels else ()
        turns = (*before, Turn(last.speaker, last.text, labels))
        return KeptDialogue(record.record_id, record.source, turns, _speakers(turns))

    def _recall(self, files: Sequence[Path]) -> None:
        """Rebuild the state from the run's files."""
        with closing(JoinedStores(files)) as stores:
            for total in stores.totals():
                self._offered += total.count
                if total.kept and total.reason in READINGS:
                    self._readings += total.count
                elif total.kept or total.reason == "label cap":
                    self._admission.recall(total.role, total.label, total.kept, total.count)
            if self._peers.is_first:
                for role, text in stores.kept_texts():
                    self._admission.recall_text(role, text)
            newest = stores.newest_kept("recognizer", OPENING_RECORDS)
            self._continuable.extend((r.iteration, Delivered.own(self._dialogue(r))) for r in newest)
            for reason in READINGS:
                for record in stores.find(Filter(kept=True, reason=reason)):
                    self.lessons.add(record)
            for record in stores.newest_kept("responder", KEPT_REPLIES):
                self.lessons.add(record)
            self._recorded = stores.iterations()
            self._last_id = stores.last_id()


def _append_to(store: FlywheelStore, records: Sequence[Record]) -> None:
    store.append(records)


def make_record(
    scored: ScoredGroup,
    record_id: int,
    weight_version: int,
    agreement: float,
    kept: bool = False,
    reason: str = "",
) -> Record:
    """Make the record of a group; before it is judged it is not kept, and has no reason.

    Args:
        agreement: of the group that read the turn.
    """
    group, best = scored.group, scored.group.samples[scored.best]
    return Record(
        record_id=record_id,
        iteration=group.iteration,
        episode=group.episode,
        turn=group.turn,
        role=group.role,
        source=group.source,
        parent=group.parent,
        weight_version=weight_version,
        speaker=group.speaker,
        text=_text_of(scored),
        labels=_labels(group, best.reading),
        gold=group.gold or (),
        target=group.target or (),
        score=scored.scores[scored.best],
        agreement=agreement,
        kept=kept,
        reason=reason,
        prompt_ids=best.prompt_ids,
        max_tokens=group.max_tokens,
        temperature=group.temperature,
        context=group.context,
        components=scored.names,
        candidates=candidates_of(scored),
        view_prompts=view_prompts_of(scored),
    )


def _text_of(scored: ScoredGroup) -> str:
    """Return the turn that was read, or the best reply."""
    if scored.group.role == "recognizer":
        return scored.group.context[-1].text
    return clean_line(scored.group.samples[scored.best].text)


def _labels(group: Group, reading: Reading | None) -> tuple[str, ...]:
    """Return the labels that a record gives its turn; `reading` is the best sample's."""
    if group.role == "responder":
        return group.target or ()
    if group.is_real_unlabelled:
        return group.consensus.labels
    return reading.labels if isinstance(reading, Answer) else ()


def _speakers(turns: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(turn.speaker for turn in turns))
