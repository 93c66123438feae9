"""Read EmotionLines (Chen et al., LREC 2018) and its EmotionX 2019 edition: JSON with five votes a turn.

A file is a list of dialogues, each a list of {speaker, utterance, emotion, annotation}. A digit of
`annotation` counts the votes for the emotion at its place in ORDER. "non-neutral" stands where the
annotators disagreed: such a turn is context, and its votes are kept in "meta".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfemo.common.printable import quote
from selfemo.corpora.files import LocatedDict, parse_json, read_text
from selfemo.corpora.imports.raw import Files, ImportFormat, RawDialogue, RawTurn, find_files
from selfemo.corpora.problems import Problem, ProblemSink

ORDER = ("neutral", "joy", "sadness", "fear", "anger", "surprise", "disgust")
_KEYS = ("speaker", "utterance", "emotion")


def _read(files: Files, report: ProblemSink) -> Iterator[RawDialogue]:
    for split, path in files:
        text = read_text(path, report)
        dialogues = None if text is None else parse_json(path, text, report)
        if not isinstance(dialogues, list):
            if text is not None:
                report(Problem(path, 1, f"holds {quote(dialogues)}, expected a list of dialogues"))
            continue
        for number, lines in enumerate(dialogues):
            where = f"dialogue {number}"
            if not isinstance(lines, list) or not all(_is_line(line) for line in lines) or not lines:
                report(
                    Problem(path, 0, f"{where} is {quote(lines)}, expected objects with {', '.join(_KEYS)}")
                )
                continue
            at = lines[0].line
            wrong = next((line for line in lines if not _has_sound_votes(line)), None)
            if wrong is not None:
                told = (
                    f"annotation {quote(wrong['annotation'])} is not the votes for {quote(wrong['emotion'])}"
                )
                report(Problem(path, wrong.line, f"{where}: {told}, expected a digit for each of {ORDER}"))
                continue
            turns = (RawTurn(v["speaker"], v["utterance"], (v["emotion"],), _votes(v)) for v in lines)
            yield RawDialogue(split, f"{path.stem}-{number}", path, at, tuple(turns))


def _is_line(value: Any) -> bool:
    return isinstance(value, LocatedDict) and all(key in value for key in _KEYS)


def _has_sound_votes(line: LocatedDict) -> bool:
    """Check the votes against the label, which has the most of them unless the annotators disagreed."""
    written = line.get("annotation", "")
    if written == "":
        return True
    if (
        not isinstance(written, str)
        or len(written) != len(ORDER)
        or not (written.isascii() and written.isdigit())
    ):
        return False
    emotion = line["emotion"]
    return emotion not in ORDER or written[ORDER.index(emotion)] == max(written) != "0"


def _votes(line: LocatedDict) -> dict[str, int]:
    return {name: int(digit) for name, digit in zip(ORDER, line.get("annotation", "")) if digit != "0"}


FORMATS = (
    ImportFormat(
        name="emotionlines",
        origin="http://doraemon.iis.sinica.edu.tw/emotionlines (Friends free, EmotionPush on request)",
        what="a directory with friends_train.json, friends_dev.json and friends_test.json, or one such file",
        find=lambda source: find_files(source, "*.json"),
        read=_read,
        labels={**{name: name for name in ORDER}, "non-neutral": None},
    ),
)
