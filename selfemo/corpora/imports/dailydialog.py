"""Read DailyDialog (Li et al., IJCNLP 2017): one dialogue a line, and its emotions in a second file.

The archive has dialogues_train.txt with dialogues_emotion_train.txt (likewise validation and test), each in
a directory of its own, and all dialogues again in dialogues_text.txt with dialogues_emotion.txt. The splits
are taken where they are. Utterances end with __eou__; the two speakers take turns and have no names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from selfemo.corpora.files import read_lines
from selfemo.corpora.imports.raw import Files, ImportFormat, RawDialogue, RawTurn, split_of
from selfemo.corpora.problems import Problem, ProblemSink

_EMOTIONS = ("no emotion", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
_END = "__eou__"
_WHOLE = ("dialogues_text.txt", "dialogues_emotion.txt")


def _find(source: Path) -> Files:
    """List (split, file), each file of texts before its file of emotions."""
    pairs: list[tuple[str, Path]] = []
    for name in ("train", "validation", "test"):
        for directory in (source, source / name):
            text, emotion = directory / f"dialogues_{name}.txt", directory / f"dialogues_emotion_{name}.txt"
            if text.is_file():
                pairs += [(split_of(text), text), (split_of(text), emotion)]
                break
    if not pairs and (source / _WHOLE[0]).is_file():
        pairs = [("train", source / name) for name in _WHOLE]
    return pairs


def _read(files: Files, report: ProblemSink) -> Iterator[RawDialogue]:
    for (split, texts), (_, emotions) in zip(files[::2], files[1::2], strict=True):
        codes_by_line = dict(read_lines(emotions, report))
        for line, text in read_lines(texts, report):
            said = text.split(_END)
            said = said if said[-1].strip() else said[:-1]
            codes = codes_by_line.pop(line, "").split()
            if len(codes) != len(said):
                told = f"has {len(said)} utterances, and line {line} of {emotions.name} {len(codes)} emotions"
                report(Problem(texts, line, f"{told}: correct or leave out the dialogue"))
                continue
            turns = (RawTurn("AB"[i % 2], t, (_label(code),)) for i, (t, code) in enumerate(zip(said, codes)))
            yield RawDialogue(split, f"{texts.stem}-{line}", texts, line, tuple(turns))
        for line in sorted(codes_by_line)[:1]:  # the two are files of different dialogues
            report(
                Problem(emotions, line, f"has emotions, and {texts.name} has no line {line}: check the files")
            )


def _label(code: str) -> str:
    return _EMOTIONS[int(code)] if code in set("0123456") else code


FORMATS = (
    ImportFormat(
        name="dailydialog",
        origin="http://yanran.li/dailydialog, CC BY-NC-SA 4.0",
        what="a directory with train/dialogues_train.txt and train/dialogues_emotion_train.txt, likewise "
        "validation and test, or with dialogues_text.txt and dialogues_emotion.txt",
        find=_find,
        read=_read,
        labels={name: "neutral" if name == "no emotion" else name for name in _EMOTIONS},
    ),
)
