"""Reads the files of a run's flywheel as one: every engine of a run writes a file of its own."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.flywheel.record import Record
from selfemo.flywheel.store import Filter, FlywheelStore, Total


class JoinedStores:
    """Open stores of one run; answers as a FlywheelStore with all of their records would. Writes nothing."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open every file for reading.

        Args:
            paths: at least one.

        Raises:
            UserError: one is missing, or not a flywheel of this version.
        """
        self._stores: list[FlywheelStore] = []
        try:
            for path in paths:
                self._stores.append(FlywheelStore(path))
        except UserError:
            self.close()
            raise
        self.path = paths[0] if len(paths) == 1 else paths[0].parent
        """Named in messages: the file, or the directory of several."""

    def close(self) -> None:
        """Close every file."""
        for store in self._stores:
            store.close()

    def totals(self) -> list[Total]:
        """Return the running counts; reads no record."""
        counts: Counter[tuple[str, str, bool, str]] = Counter()
        for total in chain.from_iterable(store.totals() for store in self._stores):
            counts[total.role, total.label, total.kept, total.reason] += total.count
        return [Total(*key, count) for key, count in sorted(counts.items())]

    def lineage(self) -> list[tuple[int, int | None, bool, str]]:
        """List (record, record it descends from, kept, source) of every record, in order; reads no detail."""
        return list(heapq.merge(*(store.lineage() for store in self._stores), key=lambda row: row[0]))

    def labels(self) -> list[str]:
        """Return the closed label set, in alphabetical order."""
        return self._stores[0].labels()

    def last_id(self) -> int:
        """Return the greatest record id; 0 without records."""
        return max(store.last_id() for store in self._stores)

    def iterations(self) -> set[int]:
        """Return the iterations that are recorded."""
        return set().union(*(store.iterations() for store in self._stores))

    def read(self, record_id: int) -> Record:
        """Read one record.

        Raises:
            UserError: no record has that id.
        """
        for store in self._stores:
            for record in store.find(Filter(after=record_id - 1), 1):
                if record.record_id == record_id:
                    return record
        raise UserError(
            f"{self.path}: no record {record_id}; expected 1 to {self.last_id()} (selfemo flywheel list)"
        )

    def find(self, wanted: Filter, limit: int = -1) -> Iterator[Record]:
        """Yield records in order of id, at most `limit` of them (-1: all)."""
        found = heapq.merge(
            *(store.find(wanted, limit) for store in self._stores), key=lambda record: record.record_id
        )
        return islice(found, None if limit < 0 else limit)

    def kept_texts(self) -> Iterator[tuple[str, str]]:
        """Yield (role, text) of every kept record but readings."""
        return chain.from_iterable(store.kept_texts() for store in self._stores)

    def newest_kept(self, role: str, count: int) -> list[Record]:
        """Return the newest kept records of a role but readings, oldest first."""
        found = chain.from_iterable(store.newest_kept(role, count) for store in self._stores)
        return sorted(found, key=lambda record: record.record_id)[-count:]
