"""Read GoEmotions (Demszky et al., ACL 2020): goemotions_1.csv to _3.csv, a row for each rater of a comment.

Raters chose any number of 28 labels; rows of one `id` are one comment, and its votes are their sums. If
train.tsv, dev.tsv and test.tsv (text, numbers of the agreed labels, id) lie beside them, they give splits
and labels, and other comments are left out, as in the published experiments. Otherwise all is training data
and the votes imply the labels. The repository holds the three .tsv files alone: without raters, they give
everything but votes. A comment is a dialogue of one turn; who wrote it is not kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from selfemo.corpora.files import read_csv, read_lines
from selfemo.corpora.imports.raw import Files, ImportFormat, RawDialogue, RawTurn, find_files, split_of
from selfemo.corpora.problems import Problem, ProblemSink

_NAMES = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment "
    "disapproval disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride "
    "realization relief remorse sadness surprise neutral"
)
EMOTIONS = _NAMES.split()
"""In the order of emotions.txt, which the numbers of the .tsv files count in."""


def _find(source: Path) -> Files:
    names = [source / f"{split}.tsv" for split in ("train", "dev", "test")]
    rows = find_files(source, "goemotions_[123].csv")
    return [*rows, *((split_of(path), path) for path in names if path.is_file())]


def _read(files: Files, report: ProblemSink) -> Iterator[RawDialogue]:
    comments = _agreed([file for file in files if file[1].suffix == ".tsv"], report)
    if all(path.suffix == ".tsv" for _, path in files):
        yield from comments
        return
    agreed = {comment.dialogue_id: (comment.split, comment.turns[0].labels) for comment in comments}
    votes: dict[str, Counter[str]] = {}
    first: dict[str, tuple[Path, int, str]] = {}
    for _, path in files:
        for line, row in read_csv(path, ("text", "id", *EMOTIONS), report) if path.suffix != ".tsv" else ():
            if bad := next((name for name in EMOTIONS if row[name] not in ("0", "1")), None):
                report(Problem(path, line, f"{bad} is not 0 or 1: correct or leave out the row"))
                continue
            first.setdefault(row["id"], (path, line, row["text"]))
            votes.setdefault(row["id"], Counter()).update(name for name in EMOTIONS if row[name] == "1")
    for comment, (path, line, text) in first.items():
        split, labels = agreed.get(comment, ("", ())) if agreed else ("train", ())
        if split:
            labels = tuple(sorted(labels, key=lambda name: -votes[comment][str(name)]))
            yield RawDialogue(split, comment, path, line, (RawTurn("Writer", text, labels, votes[comment]),))


def _agreed(files: Files, report: ProblemSink) -> Iterator[RawDialogue]:
    """Read comments with the labels that the raters agreed on."""
    for split, path in files:
        for line, text in read_lines(path, report):
            fields = text.split("\t")
            numbers = fields[1].split(",") if len(fields) == 3 else [""]
            if all(number.isascii() and number.isdigit() and len(number) < 3 for number in numbers) and all(
                int(number) < len(EMOTIONS) for number in numbers
            ):
                labels = tuple(EMOTIONS[int(number)] for number in numbers)
                yield RawDialogue(split, fields[2], path, line, (RawTurn("Writer", fields[0], labels),))
            else:
                told = "expected a text, numbers below 28 and an id, separated by tabs"
                report(Problem(path, line, f"{told}: correct or leave out the row"))


FORMATS = (
    ImportFormat(
        name="goemotions",
        origin="https://github.com/google-research/google-research/tree/master/goemotions, Apache-2.0 "
        "(code; comments are Reddit users')",
        what="a directory with goemotions_1.csv, goemotions_2.csv and goemotions_3.csv, or one of them, or "
        "with train.tsv, dev.tsv and test.tsv",
        find=_find,
        read=_read,
        labels={name: name for name in EMOTIONS},
    ),
)
