"""Reads further training dialogues as bare text: corpora or JSONL files, without the labels they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Conversation, Corpus
from selfemo.corpora.labelled import without_labels
from selfemo.corpora.overlap import TRAIN, HeldOutTexts, held_out_texts
from selfemo.corpora.problems import raise_first
from selfemo.corpora.registry import locate_corpus


def add_unlabelled(corpus: Corpus, named: str) -> Corpus:
    """Add the training dialogues of other corpora to the training split, without labels.

    A dialogue that holds a long dev or test text of the corpus, or one that the corpus bars, is left out
    whole: one shared line means a shared scene.

    Args:
        named: names or paths of the others, separated by commas.

    Raises:
        UserError: one of them is unknown or malformed, repeats a dialogue, or has none left.
    """
    held_out = HeldOutTexts(held_out_texts(corpus))
    known = {c.key for c in corpus.conversations}
    added: list[Conversation] = []
    for source in filter(None, map(str.strip, named.split(","))):
        found = read_unlabelled(source)
        repeated = next((c.key for c in found if c.key in known), None)
        if repeated is not None:
            raise UserError(
                f"corpus.unlabelled={source}: dialogue {repeated} is in the corpus already: leave {source} "
                "out, or give the file or the dialogue another name"
            )
        known |= {c.key for c in found}
        free = [c for c in found if not held_out.matches_any(c)]
        if not free:
            raise UserError(
                f"corpus.unlabelled={source}: each of its {len(found)} dialogues holds a dev or test text of "
                f"{corpus.name} or of corpus.hold_out: leave it out"
            )
        added += free
    return replace(corpus, conversations=(*corpus.conversations, *added))


def read_unlabelled(source: str) -> Sequence[Conversation]:
    """Read the training dialogues of one corpus, and drop their labels.

    Args:
        source: a corpus's name (its training split is read), a directory, or a file.

    Raises:
        UserError: as `locate_corpus`; a file is absent or malformed.
    """
    fmt, place = locate_corpus(source)
    if fmt.read_unlabelled is not None:
        return fmt.read_unlabelled(place, raise_first)
    return [without_labels(c) for c in fmt.read(place, raise_first).split(TRAIN)]
