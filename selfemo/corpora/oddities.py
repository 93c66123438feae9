"""Tell what looks wrong in a corpus whose every row can be read.

Rows are noticed while they are read (`selfemo.corpora.damage`, `selfemo.corpora.order`). Here it is
decided when they are too many, and the corpus is looked at as a whole: counts, characters, repeats,
label shares.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from selfemo.corpora.conversation import Conversation, Corpus
from selfemo.corpora.order import OUT_OF_ORDER
from selfemo.corpora.overlap import is_long, overlap_key, texts_of
from selfemo.corpora.problems import Problem
from selfemo.corpora.published import CHARACTERS, CHARACTERS_TOLERANCE, PUBLISHED
from selfemo.corpora.stats import SPLITS, primary_counts

MAX_DAMAGED_SHARE = 0.005
"""Share of a corpus's turns with one kind of damage above which it counts as destroyed; the published MELD
has 0.0009."""
MAX_REPEATED_SHARE = 0.05
"""Share of a split's long texts that may occur in two of its dialogues; MELD and EmoryNLP have 0.003."""
MAX_LABEL_SHARE = 0.95
MIN_TURNS = 100
"""Turns from which shares of a split are judged."""
_CONTRACTIONS = (
    "dont didnt doesnt isnt wasnt arent werent havent hasnt wouldnt couldnt youre theyre thats im ive"
)
_BARE = re.compile(rf"\b(?:{_CONTRACTIONS.replace(' ', '|')})\b", re.IGNORECASE)
_WHOLE = re.compile(r"\b\w+'(?:t|re|s|m|ve)\b", re.IGNORECASE)


def too_many(oddities: Sequence[Problem], turns: int) -> list[Problem]:
    """Return the oddities that make a corpus unfit: rows out of order, and frequent damage of one kind."""
    counts = Counter(problem.odd for problem in oddities)
    return [p for p in oddities if p.odd == OUT_OF_ORDER or counts[p.odd] > MAX_DAMAGED_SHARE * turns]


def corpus_oddities(corpus: Corpus) -> list[str]:
    """List what looks wrong in a corpus as a whole, one sentence each."""
    return [
        *_missing_splits(corpus),
        *(
            sentence
            for split in SPLITS
            if (conversations := corpus.split(split))
            for sentence in (
                *_unlike_the_published(corpus, split, conversations),
                *_repeats(split, conversations),
                *_label_shares(corpus, split, conversations),
                *_lost_apostrophes(split, conversations),
            )
        ),
    ]


def _missing_splits(corpus: Corpus) -> Iterator[str]:
    """Tell them of a corpus that can be trained on."""
    if corpus.split("train") and not corpus.split("dev"):
        yield "no dev split: a run needs one, which corpus.dev_share draws from train"
    if corpus.split("train") and not corpus.split("test"):
        yield "no test split"


def _unlike_the_published(corpus: Corpus, split: str, conversations: Sequence[Conversation]) -> Iterator[str]:
    published = PUBLISHED.get(corpus.name, {}).get(split)
    if published is None:
        return
    counts = primary_counts(conversations, corpus.labels)
    texts = texts_of(conversations)
    if (len(conversations), len(texts)) != (published.dialogues, published.turns):
        yield (
            f"{split}: {len(conversations):,} dialogues of {len(texts):,} turns, the published {corpus.name} "
            f"has {published.dialogues:,} of {published.turns:,}: scores on it do not compare with papers"
        )
    elif tuple(counts.values()) != published.label_counts:
        label, found, wanted = next(
            (label, n, m) for (label, n), m in zip(counts.items(), published.label_counts) if n != m
        )
        yield (
            f"{split}: {found:,} turns of {label}, the published {corpus.name} has {wanted:,}: other labels"
        )
    for what, pattern, least, largest in CHARACTERS if len(texts) >= MIN_TURNS else ():
        share = sum(bool(re.search(pattern, text)) for text in texts) / len(texts)
        if not least - CHARACTERS_TOLERANCE <= share <= largest + CHARACTERS_TOLERANCE:
            yield (
                f"{split}: {share:.0%} of the turns hold {what}, {least:.0%} to {largest:.0%} of the "
                f"published {corpus.name}'s do: texts were rewritten, or characters lost"
            )


def _repeats(split: str, conversations: Sequence[Conversation]) -> Iterator[str]:
    first: dict[tuple[str, ...], str] = {}
    holders: dict[str, set[str]] = defaultdict(set)
    for conversation in conversations:
        keys = tuple(overlap_key(turn.text) for turn in conversation.turns)
        long_keys = [key for key in keys if is_long(key)]
        for key in long_keys:
            holders[key].add(conversation.dialogue_id)
        if (
            long_keys
            and (earlier := first.setdefault(keys, conversation.dialogue_id)) != conversation.dialogue_id
        ):
            yield f"{split}: dialogue {conversation.dialogue_id} repeats dialogue {earlier}, every turn of it"
    repeated = [key for key, ids in holders.items() if len(ids) > 1]
    if len(repeated) > max(1, MAX_REPEATED_SHARE * len(holders)):
        ids = sorted(holders[repeated[0]])[:2]
        yield (
            f"{split}: {len(repeated):,} of {len(holders):,} long texts occur in two dialogues or more, "
            f"as in {' and '.join(ids)}"
        )


def _label_shares(corpus: Corpus, split: str, conversations: Sequence[Conversation]) -> Iterator[str]:
    counts = primary_counts(conversations, corpus.labels)
    total = sum(counts.values())
    if total < MIN_TURNS:
        return
    label, most = max(counts.items(), key=lambda item: item[1])
    if most > MAX_LABEL_SHARE * total:
        yield f"{split}: {most / total:.0%} of the labelled turns are {label}: always saying it is learned"
    if never := [label for label, count in counts.items() if not count]:
        yield f"{split}: no turn has the label {never[0]}" + (f" ({len(never)} labels)" if never[1:] else "")


def _lost_apostrophes(split: str, conversations: Sequence[Conversation]) -> Iterator[str]:
    texts = texts_of(conversations)
    bare, whole = (sum(len(pattern.findall(text)) for text in texts) for pattern in (_BARE, _WHOLE))
    if bare >= 20 and bare > whole:
        yield f"{split}: {bare:,} words such as dont and im, {whole:,} with an apostrophe: they were lost"
