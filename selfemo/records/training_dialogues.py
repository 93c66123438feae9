"""Names the dialogues that a run sees with labels, and those it sees without, in training_dialogues.json.

Written before anything is built, and compared when the run is resumed: what was hidden once stays hidden.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from selfemo.common.errors import UserError
from selfemo.common.printable import quote
from selfemo.config.schema import RunConfig
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.labelled import label_counts
from selfemo.corpora.overlap import TRAIN
from selfemo.records.directory import TRAINING_DIALOGUES_NAME, RunDirectory
from selfemo.records.reading import read_bytes


def record_training_dialogues(run: RunDirectory, corpus: Corpus, config: RunConfig) -> None:
    """Write the file, or compare it with the one that an earlier start of the run has written.

    Raises:
        UserError: the run was begun with other labelled or unlabelled dialogues.
    """
    wanted = training_dialogues(corpus, config)
    path = run.path(TRAINING_DIALOGUES_NAME)
    if not path.exists():
        run.write_json(TRAINING_DIALOGUES_NAME, wanted)
        return
    try:
        stored = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}): choose another output_dir or remove it") from None
    if stored != wanted:
        raise UserError(
            f"{path}: the run was begun with other labelled dialogues ({_difference(stored, wanted)}): "
            "restore the corpus, or choose another output_dir"
        )


def training_dialogues(corpus: Corpus, config: RunConfig) -> dict[str, Any]:
    """Collect share and seed of the draw, counts, and the dialogues' keys by kind as plain values."""
    train = corpus.split(TRAIN)
    return {
        "labelled_share": config.corpus.labelled_share,
        "seed": config.seed,
        "counts": dataclasses.asdict(label_counts(corpus)),
        "labelled": [c.key for c in train if c.is_labelled],
        "unlabelled": [c.key for c in train if not c.is_labelled],
    }


def _difference(stored: Any, wanted: dict[str, Any]) -> str:
    """Say in a few words which entry differs first."""
    before = stored if isinstance(stored, dict) else {}
    if odd := sorted(before.keys() - wanted.keys()):
        return f"{odd[0]}: not an entry that a run writes"
    name = next(name for name in wanted if name not in before or before[name] != wanted[name])
    old, new = before.get(name), wanted[name]
    if isinstance(old, list) and isinstance(new, list):
        other = sorted({key if isinstance(key, str) else quote(key) for key in old} ^ {*new})
        return f"{name}: {len(other)} differ, such as {other[0]}" if other else f"{name}: another order"
    return f"{name}: {quote(old)} before, {quote(new)} now"
