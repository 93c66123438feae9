"""Check what a closed label set may look like; the sets themselves are defined with the readers of
their corpora.

A label set is a plain alphabetical tuple of strings, because only plain values cross rooms. The
form of a label is fixed here, once, so that the answer grammar (`selfemo.emotions.answer`) is
unambiguous for every corpus.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from selfemo.common.errors import UserError, nearest

NEUTRAL = "neutral"
"""Label that stands for no emotion in every supported corpus; its share is a collapse indicator."""

LABEL_PATTERN = re.compile(r"[a-z][a-z_-]*(?: [a-z_-]+)*")
"""Pattern of a label: lower-case words. It holds no comma and no line break, so a list of labels on
one line can be read back."""


def check_label_set(labels: Sequence[str]) -> None:
    """Check that `labels` can serve as a closed label set.

    Raises:
        UserError: fewer than two labels, a repeated one, or one that the answer grammar could not
            carry; names it.
    """
    if len(labels) < 2:
        raise UserError(
            f"label set {list(labels)}: expected at least two labels; check the corpus's label column"
        )
    for label in labels:
        if not LABEL_PATTERN.fullmatch(label):
            raise UserError(
                f"label {label!r}: expected lower-case words without commas or line breaks; "
                "rename it in the corpus"
            )
    repeated = sorted({label for label in labels if list(labels).count(label) > 1})
    if repeated:
        raise UserError(
            f"label {repeated[0]!r} occurs twice in the label set; expected distinct labels; remove one"
        )


def check_labels(labels: Collection[str], valid: Collection[str], where: str) -> None:
    """Check that every label is in the closed set.

    Args:
        where: the place that carries the labels (file:line, option), named in the message.

    Raises:
        UserError: an unknown label, with the nearest valid one.
    """
    for label in labels:
        if label not in valid:
            raise UserError(
                f"{where}: unknown label {label!r}{nearest(label, valid)}; "
                f"expected one of {', '.join(sorted(valid))}"
            )
