"""Read MELD (Poria et al., ACL 2019): lines of Friends with one of seven emotions, in three CSV files.

Three facts decide how it is read. Dialogue_ID restarts in every split. Utterance_ID has gaps and
need not start at 0, so turns are in the order of the rows. `Sr No.` repeats. The other columns
(sentiment, season, times) are not used.

Dyadic MELD, published beside it, is the same turns cut into dialogues of two speakers. A turn may stand in
several of them, so it is another corpus, with other counts.
"""

from __future__ import annotations

from pathlib import Path

from selfemo.common.printable import quote
from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.files import read_csv
from selfemo.corpora.formats import CorpusFormat
from selfemo.corpora.order import MAX_ID_DIGITS, RowOrder
from selfemo.corpora.problems import ProblemSink
from selfemo.corpora.turns import TurnChecker

LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
FILES = {"train": "train_sent_emo.csv", "dev": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
DYADIC_FILES = {split: name.replace(".csv", "_dya.csv") for split, name in FILES.items()}
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


def read_meld(directory: Path, report: ProblemSink) -> Corpus:
    """Read MELD from a directory that holds its three CSV files."""
    return _read(directory, FILES, "meld", report)


def read_meld_dyadic(directory: Path, report: ProblemSink) -> Corpus:
    """Read Dyadic MELD from a directory that holds its three CSV files."""
    return _read(directory, DYADIC_FILES, "meld_dyadic", report)


def _read(directory: Path, files: dict[str, str], name: str, report: ProblemSink) -> Corpus:
    conversations = [
        c for split, file in files.items() for c in read_meld_split(directory / file, split, report, name)
    ]
    return Corpus(name, LABELS, tuple(conversations))


def read_meld_split(path: Path, split: str, report: ProblemSink, corpus: str = "meld") -> list[Conversation]:
    """Read one CSV file, dialogues in order of their first row."""
    checker = TurnChecker(path, LABELS, report)
    turns_by_dialogue: dict[str, list[Turn]] = {}
    line_of: dict[tuple[str, str], int] = {}
    order = RowOrder(checker)
    for line, row in read_csv(path, _COLUMNS, report):
        dialogue, utterance = row["Dialogue_ID"].strip(), row["Utterance_ID"].strip()
        bad_id = next(
            (value for value in (dialogue, utterance) if not (value.isascii() and value.isdigit())), None
        )
        if bad_id is not None:
            checker.fault(line, f"Dialogue_ID or Utterance_ID is {quote(bad_id)}, expected a whole number")
            continue
        first = line_of.setdefault((dialogue, utterance), line)
        if first != line:
            checker.fault(
                line,
                f"dialogue {dialogue} has utterance {utterance} twice, first in line {first}: remove one",
            )
            continue
        order.see(line, dialogue, int(utterance[:MAX_ID_DIGITS]))
        turn = checker.turn(line, row["Speaker"], row["Utterance"], [row["Emotion"]])
        if turn is not None:
            turns_by_dialogue.setdefault(dialogue, []).append(turn)
    return [
        Conversation(corpus, split, dialogue, tuple(turns)) for dialogue, turns in turns_by_dialogue.items()
    ]


FORMATS = (
    CorpusFormat(
        name="meld",
        read=read_meld,
        recognises=lambda path: (path / FILES["train"]).is_file(),
        default_path=lambda data_root: data_root / "meld" if data_root else None,
        what=f"a directory with {', '.join(FILES.values())}",
    ),
    CorpusFormat(
        name="meld_dyadic",
        read=read_meld_dyadic,
        recognises=lambda path: (path / DYADIC_FILES["train"]).is_file(),
        default_path=lambda data_root: data_root / "meld_dyadic" if data_root else None,
        what=f"a directory with {', '.join(DYADIC_FILES.values())}",
    ),
)
