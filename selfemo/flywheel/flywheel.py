"""Judges every group of a run, records it with its provenance, and offers the kept dialogues as openings.

Every rank holds a flywheel and offers it the same groups, so every rank knows the same kept dialogues without
communicating. One rank writes the store.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfemo.config.schema import FlywheelConfig
from selfemo.corpora.conversation import Corpus, Turn
from selfemo.corpora.overlap import HeldOutTexts, held_out_texts
from selfemo.emotions.answer import Answer, Reading
from selfemo.flywheel.duplicates import NearDuplicates
from selfemo.flywheel.lessons import KEPT_REPLIES, Lessons
from selfemo.flywheel.record import Record, candidates_of, view_prompts_of
from selfemo.flywheel.rule import CONSENSUS, agreement_on, gather_evidence, judge, within_cap
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.rewards.scoring import Rewards, ScoredGroup
from selfemo.selfplay.openings import KeptDialogue
from selfemo.selfplay.prompts import clean_line
from selfemo.selfplay.records import Group

OPENING_RECORDS = 4096
"""Number of kept recognizer records, the newest, that openings are drawn from. Bounds memory, and drops the
samples of the oldest weights."""


@dataclass(frozen=True)
class FlywheelCounts:
    """Numbers of groups judged and groups kept, over the whole run."""

    offered: int
    kept: int


class Flywheel:
    """Judges groups, remembers the kept ones and, on the writing rank, stores all of them."""

    def __init__(
        self, config: FlywheelConfig, corpus: Corpus, rewards: Rewards, path: Path, is_writer: bool
    ) -> None:
        """Open the flywheel, and load the records that a store at `path` already holds.

        Args:
            corpus: its dev and test texts, and those it bars, never enter; its training texts fix which words
                are rare.
            path: the SQLite file; every rank reads an existing one, the writer alone creates and appends.

        Raises:
            UserError: the store cannot be opened (see FlywheelStore).
        """
        self._config = config
        self._shares = rewards.label_shares
        self._held_out = HeldOutTexts(held_out_texts(corpus))
        known = [turn.text for c in corpus.split("train") for turn in c.turns]
        self._duplicates = {
            role: NearDuplicates(config.near_duplicate, known) for role in ("recognizer", "responder")
        }
        self._passed: Counter[str] = Counter()
        self._kept: Counter[tuple[str, str]] = Counter()
        self._offered = self._last_id = 0
        self._continuable: deque[tuple[int, KeptDialogue]] = deque(maxlen=OPENING_RECORDS)
        self._recorded: set[int] = set()
        self.lessons = Lessons()
        """What kept records teach."""
        self._store = (
            FlywheelStore(path, writable=True, labels=corpus.labels) if config.enabled and is_writer else None
        )
        if config.enabled and path.is_file():
            self._recall(self._store or FlywheelStore(path))

    @property
    def counts(self) -> FlywheelCounts:
        """Numbers of groups judged and kept so far, with those of an earlier part of a resumed run."""
        return FlywheelCounts(self._offered, self._kept.total())

    @property
    def last_id(self) -> int:
        """The greatest record id so far; 0 before the first."""
        return self._last_id

    @property
    def role_counts(self) -> dict[str, dict[str, int]]:
        """Per role: groups that passed the rule (some of them over a label's cap), and groups kept."""
        return {
            role: {
                "passed": self._passed[role],
                "kept": sum(n for (of, _), n in self._kept.items() if of == role),
            }
            for role in self._duplicates
        }

    def outcomes(self, iteration: int) -> dict[tuple[bool, str], int]:
        """Count the decisions on an iteration's groups by (kept, reason).

        Decisions of an earlier part of a resumed run are counted too. {} on ranks that do not write.
        """
        return self._store.outcomes(iteration) if self._store is not None else {}

    def offer(self, groups: Sequence[ScoredGroup], weight_version: int) -> list[Record]:
        """Judge one iteration's groups and record them all; returns the new records, in order.

        An iteration is offered once, whole. If it is recorded already (it ran before a resume), nothing is
        recorded again. Nothing happens if the flywheel is disabled.
        """
        if not self._config.enabled:
            return []
        evidence = gather_evidence(groups)
        fresh = [scored for scored in groups if scored.group.iteration not in self._recorded]
        records = []
        for scored in fresh:
            record = make_record(scored, self._last_id + 1, weight_version, agreement_on(scored, evidence))
            kept, reason = judge(scored, evidence, self._config)
            record = self._admit(replace(record, kept=kept, reason=reason))
            self._remember(record)
            records.append(record)
        self._recorded.update(scored.group.iteration for scored in fresh)
        if self._store is not None:
            self._store.append(records)
        return records

    def teach(
        self, groups: Sequence[ScoredGroup], labels: Sequence[tuple[str, ...]], weight_version: int
    ) -> None:
        """Record a teacher's readings of real turns, and keep those that have labels.

        Args:
            labels: taught for each group's turn.
        """
        records = []
        for scored, taught in zip(groups, labels, strict=True):
            record = make_record(scored, self._last_id + 1, weight_version, scored.group.consensus.agreement)
            reason = CONSENSUS if taught else "no answer"
            record = replace(record, labels=taught, kept=bool(taught), reason=reason)
            self._remember(record)
            records.append(record)
        if self._store is not None:
            self._store.append(records)

    def kept_dialogues(self, before_iteration: int | None = None) -> list[KeptDialogue]:
        """Return the dialogues that openings may continue, oldest first.

        Args:
            before_iteration: only records of earlier iterations, as a resumed run needs; None for all.
        """
        return [
            kept
            for iteration, kept in self._continuable
            if before_iteration is None or iteration < before_iteration
        ]

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _admit(self, record: Record) -> Record:
        """Decide on a record that passed the rule, by held-out texts, kept texts and the label's cap."""
        if not record.kept:
            return record
        if self._held_out.bars(record.text, record.context):
            return replace(record, kept=False, reason="held-out text")
        if record.reason == CONSENSUS:
            return record
        if self._duplicates[record.role].holds(record.text):
            return replace(record, kept=False, reason="near duplicate")
        label, role = record.labels[0], record.role
        if not within_cap(
            label, self._kept[role, label], self._passed[role], self._shares, self._config.rare_label_share
        ):
            return replace(record, kept=False, reason="label cap")
        return record

    def _remember(self, record: Record) -> None:
        """Update the state that later decisions depend on."""
        self._offered += 1
        self._last_id = record.record_id
        if record.kept:
            self.lessons.add(record)
        if record.kept and record.reason == CONSENSUS:
            self._kept[CONSENSUS, record.labels[0]] += 1
            return
        if record.kept or record.reason == "label cap":
            self._passed[record.role] += 1
        if not record.kept:
            return
        self._kept[record.role, record.labels[0]] += 1
        self._duplicates[record.role].add(record.text)
        self._offer_as_opening(record)

    def _offer_as_opening(self, record: Record) -> None:
        if record.role == "recognizer":
            *before, last = record.dialogue
            labels = last.labels if self._config.trust_labels else ()
            turns = (*before, Turn(last.speaker, last.text, labels))
            self._continuable.append(
                (record.iteration, KeptDialogue(record.record_id, record.source, turns, _speakers(turns)))
            )

    def _recall(self, store: FlywheelStore) -> None:
        """Rebuild the state from a store."""
        for total in store.totals():
            self._offered += total.count
            if total.kept and total.reason == CONSENSUS:
                self._kept[CONSENSUS, total.label] += total.count
                continue
            if total.kept:
                self._kept[total.role, total.label] += total.count
            if total.kept or total.reason == "label cap":
                self._passed[total.role] += total.count
        for role, text in store.kept_texts():
            self._duplicates[role].add(text)
        for record in store.newest_kept("recognizer", OPENING_RECORDS):
            self._offer_as_opening(record)
        for record in store.find(Filter(kept=True, reason=CONSENSUS)):
            self.lessons.add(record)
        for record in store.newest_kept("responder", KEPT_REPLIES):
            self.lessons.add(record)
        self._recorded = store.iterations()
        self._last_id = store.last_id()
        if store is not self._store:
            store.close()


def make_record(scored: ScoredGroup, record_id: int, weight_version: int, agreement: float) -> Record:
    """Make the record of a group before it is judged: not kept, no reason.

    Args:
        agreement: of the group that read the turn.
    """
    group, best = scored.group, scored.group.samples[scored.best]
    recognizer = group.role == "recognizer"
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
        text=group.context[-1].text if recognizer else clean_line(best.text),
        labels=_labels(group, best.reading),
        gold=group.gold or (),
        target=group.target or (),
        score=scored.scores[scored.best],
        agreement=agreement,
        kept=False,
        reason="",
        prompt_ids=best.prompt_ids,
        max_tokens=group.max_tokens,
        temperature=group.temperature,
        context=group.context,
        components=scored.names,
        candidates=candidates_of(scored),
        view_prompts=view_prompts_of(scored),
    )


def _labels(group: Group, reading: Reading | None) -> tuple[str, ...]:
    """Return the labels that a record gives its turn; `reading` is the best sample's."""
    if group.role == "responder":
        return group.target or ()
    if group.is_real_unlabelled:
        return group.consensus.labels
    return reading.labels if isinstance(reading, Answer) else ()


def _speakers(turns: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(turn.speaker for turn in turns))
