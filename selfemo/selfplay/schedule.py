"""Orders the visits to labelled items: every item in turn, rare labels as often as configured.

The order has no state. Slot k of a run always holds the same item, computed from k alone, so that a resume
needs no cursor and ranks agree without communicating. An epoch gives each label a fixed number of slots,
fills them by walking through that label's items in a shuffled order (continuing at the place where the last
epoch stopped), and shuffles the slots. With balance 0 each item appears exactly once per epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from selfemo.common.seeds import derive_rng


@dataclass(frozen=True)
class Schedule:
    """An endless, stateless order over `len(labels)` items."""

    labels: tuple[str, ...]
    """Primary label of each item."""
    balance: float
    """A label's share of slots is proportional to its share of items ** (1 - balance)."""
    run_seed: int
    purpose: str
    """Part of every seed this schedule derives, so that two schedules of a run are independent."""
    slots: tuple[tuple[str, int], ...] = field(init=False)
    """(label, slots per epoch), alphabetical."""
    _members: dict[str, list[int]] = field(init=False, repr=False, compare=False)
    _orders: dict[tuple[str, int], list[int]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        """Count items by label.

        Raises:
            ValueError: there is no item, or the balance is outside [0, 1].
        """
        if not self.labels:
            raise ValueError("labels is empty: a schedule needs at least one item")
        if not 0.0 <= self.balance <= 1.0:
            raise ValueError(f"balance is {self.balance}, expected a value in [0, 1]")
        members: dict[str, list[int]] = {}
        for item, label in enumerate(self.labels):
            members.setdefault(label, []).append(item)
        weights = {label: len(items) ** (1.0 - self.balance) for label, items in sorted(members.items())}
        scale = len(self.labels) / sum(weights.values())
        object.__setattr__(
            self, "slots", tuple((label, max(1, round(weight * scale))) for label, weight in weights.items())
        )
        object.__setattr__(self, "_members", members)

    @property
    def epoch_slots(self) -> int:
        return sum(count for _, count in self.slots)

    def take(self, start: int, count: int) -> list[int]:
        """Return the items of slots start .. start + count - 1."""
        size = self.epoch_slots
        return [self._epoch(slot // size)[slot % size] for slot in range(start, start + count)]

    def _epoch(self, epoch: int) -> list[int]:
        key = ("", epoch)
        if key not in self._orders:
            items = [
                self._walk(label, epoch * count + i) for label, count in self.slots for i in range(count)
            ]
            derive_rng(self.run_seed, self.purpose, "epoch", epoch).shuffle(items)
            self._remember(key, items)
        return self._orders[key]

    def _walk(self, label: str, position: int) -> int:
        """Return the item at a position of a label's endless walk.

        Each round visits all of the label's items, newly shuffled.
        """
        members = self._members[label]
        turn, place = divmod(position, len(members))
        key = (f"label:{label}", turn)
        if key not in self._orders:
            order = list(members)
            derive_rng(self.run_seed, self.purpose, label, turn).shuffle(order)
            self._remember(key, order)
        return self._orders[key][place]

    def _remember(self, key: tuple[str, int], order: list[int]) -> None:
        if len(self._orders) > 4 * len(self.slots) + 4:
            self._orders.clear()
        self._orders[key] = order


@dataclass(frozen=True)
class MixedSchedule:
    """An endless, stateless order over labelled items and others, each kind in an order of its own."""

    labelled: Schedule | None
    """Over the first items; None if there are none: then `share` is 1."""
    unlabelled: Schedule | None
    """Over the items that follow those; None if there are none: then `share` is 0."""
    share: float
    """Share of the slots that hold an item without labels; 0 takes from `labelled` alone, slot by slot."""

    @classmethod
    def of(
        cls,
        labels: tuple[str, ...],
        unlabelled: int,
        share: float,
        balance: float,
        run_seed: int,
        purpose: str,
    ) -> MixedSchedule:
        """Order len(labels) labelled items and `unlabelled` others; arguments as in Schedule."""
        return cls(
            Schedule(labels, balance, run_seed, purpose) if labels else None,
            Schedule(("",) * unlabelled, 0.0, run_seed, f"unlabelled {purpose}") if unlabelled else None,
            share,
        )

    def take(self, start: int, count: int) -> list[int]:
        """Return the items of slots start .. start + count - 1; those without labels are numbered last."""
        items = []
        for slot in range(start, start + count):
            is_unlabelled, index = interleave(slot, self.share)
            schedule = self.unlabelled if is_unlabelled else self.labelled
            assert schedule is not None, "a kind without items has no share"
            first = len(self.labelled.labels) if is_unlabelled and self.labelled is not None else 0
            items.append(first + schedule.take(index, 1)[0])
        return items


def interleave(slot: int, share: float) -> tuple[bool, int]:
    """Deal slots over two kinds as evenly as `share`, the share of the second kind, allows.

    Returns:
        (whether the slot is of the second kind, its index within its kind).
    """
    before, after = int(slot * share + 1e-9), int((slot + 1) * share + 1e-9)
    return (True, before) if after > before else (False, slot - before)
