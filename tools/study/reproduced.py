"""Compares a study that was run again, for one seed or more, with the figures that were published.

    python -m tools.study.reproduced runs/study_scarce/tables docs/study/figures/meld

Both are directories of a study's CSV files. A published figure is reproduced if it lies within the interval
of the new one: over the dialogues, and over the seeds if there are several.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from selfemo.common.errors import UserError, told_in_one_line
from tools.study.render import seeds_of
from tools.study.tables import Comparison, Tables, read_tables


@dataclass(frozen=True)
class Pair:
    """A figure of the new study, and the published one of the same seeds."""

    new: Comparison
    published: float

    @property
    def is_reproduced(self) -> bool:
        """Whether the published figure lies within the new one's interval."""
        return self.new.low <= self.published <= self.new.high


def pairs_of(new: Tables, published: Tables) -> Iterator[Pair]:
    """Yield the figures of every variant, share and split that both have for all seeds of the new one."""
    known = {(v.share, v.seed, v.variant, v.split, v.measure): v.value for v in published.values}
    for row in new.comparisons:
        keys = [(row.share, seed, row.variant, row.split, row.measure) for seed in seeds_of(new, row.share)]
        if not row.baseline and all(key in known for key in keys):
            yield Pair(row, statistics.mean(known[key] for key in keys))


def main(
    new: Annotated[Path, typer.Argument(help="Directory of CSV files of the study that was run again.")],
    published: Annotated[Path, typer.Argument(help="Directory of those that were published.")],
) -> None:
    """Print the figures that were not reproduced, and how many were."""
    with told_in_one_line():
        pairs = list(pairs_of(read_tables(new), read_tables(published)))
        if not pairs:
            raise UserError(f"{new}: no figure of {published} is there for the same seeds, shares and splits")
    for pair in (pair for pair in pairs if not pair.is_reproduced):
        row, share = pair.new, "" if pair.new.share is None else f" at {pair.new.share:g}"
        typer.echo(
            f"{row.variant}{share}, {row.split}, {row.measure}: published {100 * pair.published:.1f}, "
            f"now {100 * row.value:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        )
    typer.echo(
        f"{sum(pair.is_reproduced for pair in pairs)} of {len(pairs)} figures lie within their intervals"
    )


if __name__ == "__main__":
    typer.run(main)
