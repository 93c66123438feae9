"""Read EmpatheticDialogues (Rashkin et al., ACL 2019): train.csv, valid.csv and test.csv.

The files are no CSV with quotes: a comma of a text is written _comma_, and quotes mean nothing. The emotion
of a dialogue is that of the situation which its first speaker tells, so it labels the first turn alone; the
replies were not annotated. The situation is kept in "meta".
"""

from __future__ import annotations

from collections.abc import Iterator

from selfemo.common.printable import quote
from selfemo.corpora.files import read_lines
from selfemo.corpora.imports.raw import Files, ImportFormat, RawDialogue, RawTurn, find_files
from selfemo.corpora.problems import Problem, ProblemSink

_COLUMNS = ["conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance"]
_EMOTIONS = (
    "afraid angry annoyed anticipating anxious apprehensive ashamed caring confident content devastated "
    "disappointed disgusted embarrassed excited faithful furious grateful guilty hopeful impressed jealous "
    "joyful lonely nostalgic prepared proud sad sentimental surprised terrified trusting"
)


def _read(files: Files, report: ProblemSink) -> Iterator[RawDialogue]:
    for split, path in files:
        open_rows: list[tuple[int, list[str]]] = []
        for line, text in read_lines(path, report):
            row = text.split(",")[: len(_COLUMNS)]
            if len(row) < len(_COLUMNS) or not row[1].isdecimal():
                if row != _COLUMNS[: len(row)]:
                    told = f"holds {quote(text)}, expected {','.join(_COLUMNS)}, separated by commas"
                    report(Problem(path, line, told))
                continue
            if open_rows and open_rows[0][1][0] != row[0]:
                yield RawDialogue(split, open_rows[0][1][0], path, open_rows[0][0], *_dialogue(open_rows))
                open_rows = []
            open_rows.append((line, row))
        if open_rows:
            yield RawDialogue(split, open_rows[0][1][0], path, open_rows[0][0], *_dialogue(open_rows))


def _dialogue(rows: list[tuple[int, list[str]]]) -> tuple[tuple[RawTurn, ...], dict[str, str]]:
    _, _, emotion, situation, first_speaker, _ = rows[0][1]
    turns = [
        RawTurn("Speaker" if row[4] == first_speaker else "Listener", _text(row[5]), () if i else (emotion,))
        for i, (_, row) in enumerate(rows)
    ]
    return tuple(turns), {"situation": _text(situation)}


def _text(written: str) -> str:
    return written.replace("_comma_", ",")


FORMATS = (
    ImportFormat(
        name="empatheticdialogues",
        origin="https://github.com/facebookresearch/EmpatheticDialogues, CC BY-NC 4.0",
        what="a directory with train.csv, valid.csv and test.csv, or one of them",
        find=lambda source: find_files(source, "*.csv"),
        read=_read,
        labels={name: name for name in _EMOTIONS.split()},
    ),
)
