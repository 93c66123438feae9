"""Draws a dev split from the training dialogues of a corpus that has none, such as a single JSONL file."""

from __future__ import annotations

from dataclasses import replace

from selfemo.common.errors import UserError
from selfemo.common.seeds import derive_seed
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.overlap import TRAIN

DEV = "dev"


def draw_dev(corpus: Corpus, share: float, seed: int) -> Corpus:
    """Move a share of the labelled training dialogues to dev, whole dialogues at a time.

    Each dialogue has a rank that depends on the seed and its key alone, and the lowest ranks are drawn. What
    a smaller share draws, a larger one draws too, and other dialogues can come and go.

    Args:
        share: of the training dialogues that have labels; 0 returns the corpus as it is.

    Raises:
        UserError: the corpus has a dev split already, or the share leaves dev or train without a dialogue.
    """
    if share == 0:
        return corpus
    if corpus.split(DEV):
        raise UserError(
            f"corpus.dev_share={share}, but {corpus.name} has a dev split of {len(corpus.split(DEV))} "
            "dialogues: set it to 0, or name a corpus without one"
        )
    labelled = [c.key for c in corpus.split(TRAIN) if c.is_labelled]
    count = int(share * len(labelled) + 0.5)
    if not 0 < count < len(labelled):
        raise UserError(
            f"corpus.dev_share={share} draws {count} of the {len(labelled)} labelled training dialogues of "
            f"{corpus.name}, expected at least one for dev and one for train: change it"
        )
    drawn = set(sorted(labelled, key=lambda key: (derive_seed(seed, "dev dialogues", key), key))[:count])
    return replace(
        corpus,
        conversations=tuple(replace(c, split=DEV) if c.key in drawn else c for c in corpus.conversations),
    )


def check_evaluated(corpus: Corpus, split: str) -> None:
    """Refuse a corpus without a labelled turn in the split that a run scores.

    Raises:
        UserError: names the field that draws a dev split, or the one that names the split.
    """
    if any(c.is_labelled for c in corpus.split(split)):
        return
    if split == DEV and not corpus.split(DEV):
        raise UserError(
            f"corpus {corpus.name} has no dev split to score a run on: set corpus.dev_share (such as 0.1) to "
            "draw one from its training dialogues, or add one"
        )
    raise UserError(
        f"corpus {corpus.name}: its {split} split holds no labelled turn to score a run on: "
        "check evaluation.split and the corpus's labels"
    )
