"""Holds a study's results as four small tables, and their CSV files: the page is rendered from these alone.

`arms.csv` says what was compared, `splits.csv` on which turns. `values.csv` has one row per labelled share,
seed, variant, split and measure, `comparisons.csv` the means over seeds and their differences with intervals.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from selfemo.common.errors import UserError
from selfemo.common.files import replace_text

NULLABLE = ("share", "p", "holm")
TRAINING = "training"
"""Stands for the split of a measure that is not one of answers."""
MINUTES = "cpu_minutes"
"""Of training, or of asking about a split."""
NEUTRAL_SHARE = "neutral_share"
"""Of the answers in the grammar, as `metrics.Classification` defines it."""
FAILURES = "format_failure_rate"
"""Share of turns whose answer is outside the grammar."""
EVERY = "(every variant)"
"""Stands for a variant in the line of arms.csv that says what all but the start have in common."""
SEPARATOR = "; "
"""Between the settings of an arm, and between the evaluations of a split."""


@dataclass(frozen=True)
class Arm:
    """One line of arms.csv."""

    variant: str
    says: str
    settings: str
    in_curve: bool
    """Whether the learning curve shows it."""


@dataclass(frozen=True)
class Split:
    """One line of splits.csv."""

    split: str
    corpus: str
    turns: int
    dialogues: int
    neutral: float
    """Share of turns whose gold label is neutral."""
    evaluated: str
    """The test split: commit and day of each evaluation, the first one first; empty for any other."""


@dataclass(frozen=True)
class Value:
    """One line of values.csv."""

    share: float | None
    """Labelled share; None in a study of one."""
    seed: int
    variant: str
    split: str
    measure: str
    value: float


@dataclass(frozen=True)
class Comparison:
    """One line of comparisons.csv: the mean over seeds, with its interval of 95%."""

    share: float | None
    variant: str
    baseline: str
    """The variant that it is the difference from; empty: it is the variant's own mean."""
    split: str
    measure: str
    value: float
    low: float
    high: float
    p: float | None = None
    """Two-sided p-value of a difference."""
    holm: float | None = None
    """The same after Holm's correction over the main comparison; None outside it."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class Tables:
    """Everything that a page shows."""

    arms: tuple[Arm, ...]
    """What every variant adds comes first, then the start, then the variants."""
    splits: tuple[Split, ...]
    values: tuple[Value, ...]
    comparisons: tuple[Comparison, ...]


KINDS: dict[str, type] = {"arms": Arm, "splits": Split, "values": Value, "comparisons": Comparison}


def write_tables(directory: Path, tables: Tables) -> None:
    """Write the four files, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        replace_text(directory / f"{name}.csv", _csv(getattr(tables, name), kind))


def read_tables(directory: Path) -> Tables:
    """Read what `write_tables` wrote.

    Raises:
        UserError: a file is missing or holds something else.
    """
    return Tables(**{name: tuple(_read(directory / f"{name}.csv", kind)) for name, kind in KINDS.items()})


def _csv(rows: Sequence[Any], kind: type) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = asdict(row).items()
        writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in values})
    return text.getvalue()


def _read(path: Path, kind: type) -> list[Any]:
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        cleaned = [{k: None if k in NULLABLE and not v else v for k, v in row.items()} for row in rows]
        found: list[Any] = TypeAdapter(list[kind]).validate_python(cleaned)  # type: ignore[valid-type]
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected the directory of a study's CSV files"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return found
