"""Read the video-aligned EmoryNLP that MELD's repository publishes: a part of EmoryNLP, in three CSV files.

It has 7,551 / 954 / 984 turns, so its scores do not compare with those on EmoryNLP. Scene_ID restarts in
every episode: season, episode and scene together name a dialogue. Utterance_ID has gaps. Speaker is a list
as Python prints it, such as "['Monica Geller', 'Chandler Bing']".
"""

from __future__ import annotations

import re
from pathlib import Path

from selfemo.common.printable import quote
from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.files import read_csv
from selfemo.corpora.formats import CorpusFormat
from selfemo.corpora.order import MAX_ID_DIGITS, RowOrder
from selfemo.corpora.problems import ProblemSink
from selfemo.corpora.readers.emorynlp import LABELS
from selfemo.corpora.turns import TurnChecker

NAME = "emorynlp_video"
FILES = {split: f"emorynlp_{split}_final.csv" for split in ("train", "dev", "test")}
_KEY = ("Season", "Episode", "Scene_ID", "Utterance_ID")
_NAMES = re.compile(r"""'([^']*)'|"([^"]*)\"""")


def read_emorynlp_video(directory: Path, report: ProblemSink) -> Corpus:
    """Read the corpus from a directory that holds its three CSV files."""
    conversations = [
        c for split, name in FILES.items() for c in read_emorynlp_video_split(directory / name, split, report)
    ]
    return Corpus(NAME, LABELS, tuple(conversations))


def read_emorynlp_video_split(path: Path, split: str, report: ProblemSink) -> list[Conversation]:
    """Read one CSV file, scenes in order of their first row. Dialogue ids are EmoryNLP's: s01_e02_c03."""
    checker = TurnChecker(path, LABELS, report)
    turns_by_scene: dict[str, list[Turn]] = {}
    line_of: dict[tuple[str, ...], int] = {}
    order = RowOrder(checker)
    for line, row in read_csv(path, ("Utterance", "Speaker", "Emotion", *_KEY), report):
        key = tuple(row[column].strip() for column in _KEY)
        bad = next((c for c, value in zip(_KEY, key) if not (value.isascii() and value.isdigit())), None)
        if bad is not None:
            checker.fault(line, f"{bad} is {quote(row[bad])}, expected a whole number")
            continue
        season, episode, scene, utterance = (value[:MAX_ID_DIGITS] for value in key)
        dialogue = f"s{season:0>2}_e{episode:0>2}_c{scene:0>2}"
        if (first := line_of.setdefault((dialogue, utterance), line)) != line:
            told = f"scene {dialogue} has utterance {utterance} twice, first in line {first}: remove one"
            checker.fault(line, told)
            continue
        order.see(line, dialogue, int(utterance))
        turn = checker.turn(line, _speakers(row["Speaker"]), row["Utterance"], [row["Emotion"]])
        if turn is not None:
            turns_by_scene.setdefault(dialogue, []).append(turn)
    return [Conversation(NAME, split, dialogue, tuple(turns)) for dialogue, turns in turns_by_scene.items()]


def _speakers(printed: str) -> str:
    """Join the names of a printed list; another text is one name."""
    names = [one or other for one, other in _NAMES.findall(printed)] if printed.startswith("[") else []
    return ", ".join(filter(None, names)) or printed


FORMATS = (
    CorpusFormat(
        name=NAME,
        read=read_emorynlp_video,
        recognises=lambda path: (path / FILES["train"]).is_file(),
        default_path=lambda data_root: data_root / NAME if data_root else None,
        what=f"a directory with {', '.join(FILES.values())}",
    ),
)
