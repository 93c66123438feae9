"""Read EmpatheticDialogues (Rashkin et al., ACL 2019): train.csv, valid.csv and test.csv.

The files are no CSV with quotes: a comma of a text is written _comma_, and quotes mean nothing. The emotion
of a dialogue is that of the situation which its first speaker tells, so it labels the first turn alone; the
replies were not annotated. The situation is kept in "meta".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from selfemo.common.printable import quote
from selfemo.corpora.files import read_lines
from selfemo.corpora.imports.raw import Files, ImportFormat, RawDialogue, RawTurn, find_files
from selfemo.corpora.order import MAX_ID_DIGITS
from selfemo.corpora.problems import Problem, ProblemSink

_COLUMNS = ["conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance"]
_EMOTIONS = (
    "afraid angry annoyed anticipating anxious apprehensive ashamed caring confident content devastated "
    "disappointed disgusted embarrassed excited faithful furious grateful guilty hopeful impressed jealous "
    "joyful lonely nostalgic prepared proud sad sentimental surprised terrified trusting"
)


def _read(files: Files, report: ProblemSink) -> Iterator[RawDialogue]:
    for split, path in files:
        faulty: set[str] = set()
        open_rows: list[tuple[int, list[str]]] = []
        for line, text in read_lines(path, report):
            fields = text.split(",")
            row = fields[: len(_COLUMNS)]
            if row == _COLUMNS:
                continue
            if len(row) < len(_COLUMNS) or not (_is_number(row[1]) and _is_number(row[4])) or _is_cut(fields):
                told = f"holds {quote(text)}, expected {','.join(_COLUMNS)}, separated by commas"
                report(Problem(path, line, f"{told}; a comma of a text is written _comma_"))
                faulty.add(row[0])
                continue
            if open_rows and open_rows[0][1][0] != row[0]:
                yield from _dialogue(split, path, open_rows, faulty)
                open_rows = []
            if open_rows and int(open_rows[-1][1][1]) > int(row[1]):
                told = f"utterance {row[1]} of {row[0]} stands after {open_rows[-1][1][1]}"
                report(Problem(path, line, f"{told}: sort the file by conv_id and utterance_idx"))
                faulty.add(row[0])
            open_rows.append((line, row))
        if open_rows:
            yield from _dialogue(split, path, open_rows, faulty)


def _dialogue(
    split: str, path: Path, rows: list[tuple[int, list[str]]], faulty: set[str]
) -> Iterator[RawDialogue]:
    """Yield the dialogue of the rows, unless one of its rows is faulty."""
    line, (dialogue, _, emotion, situation, first_speaker, _) = rows[0]
    if dialogue in faulty:
        return
    turns = [
        RawTurn("Speaker" if row[4] == first_speaker else "Listener", _text(row[5]), () if i else (emotion,))
        for i, (_, row) in enumerate(rows)
    ]
    yield RawDialogue(split, dialogue, path, line, tuple(turns), {"situation": _text(situation)})


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdigit() and len(field) <= MAX_ID_DIGITS


def _is_cut(fields: list[str]) -> bool:
    """Tell whether an utterance goes on behind a comma, in quotes: a program has saved the file anew."""
    rest = fields[len(_COLUMNS) :]
    return fields[5].count('"') % 2 == 1 and any('"' in field for field in rest)


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
