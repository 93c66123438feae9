"""Prints the table of README.md: turns by split and label.

Run `python examples/data/everyday/counts.py`; it needs nothing but Python.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
SPLITS = ("train", "dev", "test")


def table() -> str:
    """Return a Markdown table: one row per label with the number of turns that carry it.

    The first number counts turns with the label as the primary one, the number in brackets those with
    it in any place.
    """
    labels = json.loads((HERE / "labels.json").read_text())
    dialogues = {split: [json.loads(line) for line in (HERE / f"{split}.jsonl").open()] for split in SPLITS}
    turns = {split: [turn for dialogue in dialogues[split] for turn in dialogue["turns"]] for split in SPLITS}
    rows = [("", *SPLITS), ("---", *["---"] * len(SPLITS))]
    rows.append(("dialogues", *(str(len(dialogues[split])) for split in SPLITS)))
    rows.append(("turns", *(str(len(turns[split])) for split in SPLITS)))
    rows.append(
        (
            "turns with several labels",
            *(str(sum(len(turn["labels"]) > 1 for turn in turns[split])) for split in SPLITS),
        )
    )
    primary = {split: Counter(turn["labels"][0] for turn in turns[split]) for split in SPLITS}
    anywhere = {
        split: Counter(label for turn in turns[split] for label in turn["labels"]) for split in SPLITS
    }
    rows += [
        (label, *(f"{primary[split][label]} ({anywhere[split][label]})" for split in SPLITS))
        for label in labels
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
