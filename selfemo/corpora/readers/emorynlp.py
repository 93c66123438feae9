"""Read EmoryNLP emotion detection (Zahiri & Choi, 2018): Friends, seasons 1-4, seven emotions of
its own, JSON in two forms.

The official form nests episodes > scenes > utterances. The widespread re-serialised form is a list
of scenes, each a list of {text, speaker, label}. Texts and labels are the same. If several people
speak at once, the official form lists them and the other joins their names with blanks. If files of
both forms are in one directory, the official one is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfemo.common.printable import quote
from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.files import LocatedDict, parse_json, read_text
from selfemo.corpora.formats import CorpusFormat
from selfemo.corpora.order import MAX_ID_DIGITS, RowOrder
from selfemo.corpora.problems import Problem, ProblemSink
from selfemo.corpora.turns import TurnChecker

LABELS = ("joyful", "mad", "neutral", "peaceful", "powerful", "sad", "scared")
FILES = {
    "train": ("emotion-detection-trn.json", "train_data.json"),
    "dev": ("emotion-detection-dev.json", "dev_data.json"),
    "test": ("emotion-detection-tst.json", "test_data.json"),
}
"""Split to file names, the official one first."""
_UTTERANCE_ID = re.compile(rf"\w*_u([0-9]{{1,{MAX_ID_DIGITS}}})")


def read_emorynlp(directory: Path, report: ProblemSink) -> Corpus:
    """Read EmoryNLP from a directory that holds one file per split, in either form."""
    conversations: list[Conversation] = []
    for split, names in FILES.items():
        path = next((directory / name for name in names if (directory / name).is_file()), None)
        if path is None:
            report(
                Problem(directory, 0, f"has no {split} split, expected {' or '.join(names)}: copy it there")
            )
        else:
            conversations += read_emorynlp_split(path, split, report)
    return Corpus("emorynlp", LABELS, tuple(conversations))


def read_emorynlp_split(path: Path, split: str, report: ProblemSink) -> list[Conversation]:
    """Read one JSON file of either form. Dialogue ids are scene_id, or the scene's number in the
    form without it."""
    text = read_text(path, report)
    value = None if text is None else parse_json(path, text, report)
    if value is None:
        return []
    checker = TurnChecker(path, LABELS, report)
    scenes = _official_scenes(value, checker) if isinstance(value, dict) else _listed_scenes(value, checker)
    conversations: dict[str, Conversation] = {}
    order = RowOrder(checker)
    for scene_id, utterances in scenes:
        if scene_id in conversations:
            line = next((u.line for u in utterances if isinstance(u, LocatedDict)), 0)
            checker.fault(line, f"scene {quote(scene_id)} appears twice: remove one")
            continue
        for utterance in utterances:
            if number := _number(utterance):
                order.see(utterance.line, scene_id, int(number[1]))
        turns = [
            _turn(checker, f"scene {quote(scene_id)}, utterance {i}", u)
            for i, u in enumerate(utterances, start=1)
        ]
        kept = tuple(turn for turn in turns if turn is not None)
        if kept:
            conversations[scene_id] = Conversation("emorynlp", split, scene_id, kept)
        elif not turns:
            checker.fault(0, f"scene {quote(scene_id)} has no utterances: remove it")
    return list(conversations.values())


def _number(utterance: Any) -> re.Match[str] | None:
    """Find the number in an utterance_id such as s01_e15_c01_u002, which the official form has."""
    written = utterance.get("utterance_id") if isinstance(utterance, LocatedDict) else None
    return _UTTERANCE_ID.fullmatch(written) if isinstance(written, str) else None


def _turn(checker: TurnChecker, where: str, utterance: Any) -> Turn | None:
    if not isinstance(utterance, LocatedDict):
        checker.fault(0, f"{where} is {quote(utterance)}, expected an object")
        return None
    official = "transcript" in utterance
    keys = ("transcript", "speakers", "emotion") if official else ("text", "speaker", "label")
    missing = next((key for key in keys if key not in utterance), None)
    if missing is not None:
        checker.fault(utterance.line, f"{where} has no {missing!r}, expected the keys {', '.join(keys)}")
        return None
    text, speaker, label = (utterance[key] for key in keys)
    if official:
        if not isinstance(speaker, list) or not all(isinstance(name, str) for name in speaker):
            checker.fault(
                utterance.line, f"speakers of {where} are {quote(speaker)}, expected a list of names"
            )
            return None
        speaker = ", ".join(speaker)
    return checker.turn(utterance.line, speaker, text, [label])


def _listed_scenes(value: Any, checker: TurnChecker) -> Iterator[tuple[str, list[Any]]]:
    if not isinstance(value, list):
        checker.fault(1, f"holds {quote(value)}, expected a list of scenes or an object with 'episodes'")
        return
    for number, scene in enumerate(value):
        if isinstance(scene, list):
            yield str(number), scene
        else:
            checker.fault(
                getattr(scene, "line", 0), f"scene {number} is {quote(scene)}, expected a list of utterances"
            )


def _official_scenes(value: Any, checker: TurnChecker) -> Iterator[tuple[str, list[Any]]]:
    for episode in _children(value, "episodes", checker):
        for scene in _children(episode, "scenes", checker):
            utterances = _children(scene, "utterances", checker)
            scene_id = scene.get("scene_id") if isinstance(scene, dict) else None
            if isinstance(scene_id, str) and scene_id.strip() and scene_id.isprintable():
                yield scene_id, utterances
            elif isinstance(scene, LocatedDict):
                checker.fault(
                    scene.line, f"scene_id is {quote(scene_id)}, expected a text of printable characters"
                )


def _children(parent: Any, key: str, checker: TurnChecker) -> list[Any]:
    children = parent.get(key) if isinstance(parent, dict) else None
    if isinstance(children, list):
        return children
    checker.fault(
        getattr(parent, "line", 0),
        f"{quote(parent)} has no list {key!r}, expected episodes > scenes > utterances",
    )
    return []


FORMATS = (
    CorpusFormat(
        name="emorynlp",
        read=read_emorynlp,
        recognises=lambda path: any((path / name).is_file() for name in FILES["train"]),
        default_path=lambda data_root: data_root / "emorynlp" if data_root else None,
        what="a directory with " + ", ".join(" or ".join(names) for names in FILES.values()),
    ),
)
