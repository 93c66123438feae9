"""Joins the parts of a flywheel that ranks hold: this process alone, or all ranks (run/flywheel_peers.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfemo.flywheel.delivered import Delivered
from selfemo.flywheel.lessons import Lesson
from selfemo.selfplay.openings import Place


class Alone:
    """The only process of a run. Of several, each calls every method; orders are those of the ranks."""

    is_first = True
    """Whether this process decides for all."""

    def numbered(self, count: int) -> tuple[int, int]:
        """Number the items of all ranks: how many precede this rank's `count`, and how many there are."""
        return 0, count

    def totals(self, counts: Sequence[int]) -> list[int]:
        """Add up counts over the ranks."""
        return list(counts)

    def decided[T, R](self, decide: Callable[[list[T]], list[R]], items: Sequence[T]) -> list[R]:
        """Let the first rank decide on the items of all ranks, in order; returns this rank's decisions."""
        return decide(list(items))

    def newest[T](self, items: Sequence[tuple[int, T]], limit: int) -> list[tuple[int, Delivered[T]]]:
        """Return the last `limit` (iteration, item) of all ranks, in order."""
        return [(made, Delivered.own(item)) for made, item in items[-limit:]]

    def readings(
        self, agreed: Sequence[tuple[int, tuple[Place, Lesson]]]
    ) -> Sequence[tuple[int, tuple[Place, Lesson]]]:
        """Return the (iteration, consensus on a real turn) of all ranks, in order."""
        return agreed

    def to_writer[T](self, items: Sequence[T]) -> list[T]:
        """Hand items to the engine's writing rank: it gets those of all of its ranks, others get none."""
        return list(items)

    def together(self, write: Callable[[], None]) -> None:
        """Run `write` on every rank. What one raises, all raise."""
        write()


ALONE = Alone()
