"""Map the labels of an imported corpus to the project's, by a JSON object that its user can edit.

    {"no emotion": "neutral", "happiness": "joy", "non-neutral": null}

null leaves a turn without a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfemo.common.printable import quote
from selfemo.corpora.files import LocatedDict, parse_json, read_text
from selfemo.corpora.problems import Problem, raise_first
from selfemo.corpora.readers.jsonl import LABEL_NAME
from selfemo.corpora.text import clean_text


class UnknownLabel(Exception):
    """A label of the source that the map does not name."""


@dataclass(frozen=True)
class LabelMap:
    """Label of the project by label of the source, in lower case."""

    targets: Mapping[str, str | None]
    """Empty: no labels are read at all."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The closed label set, alphabetical."""
        return tuple(sorted({label for label in self.targets.values() if label is not None}))

    def apply(self, labels: Iterable[object]) -> list[str]:
        """Map labels in order, each project label once; those that map to null are left out.

        Raises:
            UnknownLabel: the map has entries, and none for one of the labels.
        """
        mapped: dict[str, None] = {}
        for label in labels if self.targets else ():
            name = clean_text(label).lower() if isinstance(label, str) else label
            if not isinstance(name, str) or name not in self.targets:
                raise UnknownLabel(quote(label))
            if (target := self.targets[name]) is not None:
                mapped[target] = None
        return list(mapped)


def read_label_map(path: Path) -> LabelMap:
    """Read a label map.

    Raises:
        UserError: it cannot be read, or an entry is no label of the project or null; names it.
    """
    text = read_text(path, raise_first)
    value = None if text is None else parse_json(path, text, raise_first)
    if not isinstance(value, LocatedDict) or not value:
        told = f'holds {quote(value)}, expected an object such as {{"happiness": "joy", "other": null}}'
        raise_first(Problem(path, 1, told))
        return LabelMap({})
    for name, target in value.items():
        if target is not None and not (isinstance(target, str) and LABEL_NAME.fullmatch(target)):
            told = f"{quote(name)} maps to {quote(target)}, expected a label in lower-case letters, or null"
            raise_first(Problem(path, value.line, told))
    found = LabelMap({clean_text(name).lower(): target for name, target in value.items()})
    if len(found.labels) < 2:
        raise_first(Problem(path, 1, "maps to fewer than two labels, expected a label set: add one"))
    return found
