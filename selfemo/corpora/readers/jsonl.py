"""Read the project's own form, one dialogue per line, and `everyday`, the bundled corpus in that form.

    {"id": "cafe-3", "turns": [{"speaker": "Ana", "text": "You came!",
                                "labels": ["joy", "surprise"], "votes": {"joy": 3}}]}

A turn may have several labels and votes. A directory holds train.jsonl, dev.jsonl and test.jsonl if there
are such splits, and labels.json, the list of label names. Labels and votes are optional; votes without
labels imply them. Unknown keys are refused, since `label` for `labels` would silently drop annotations.
A program may keep further data of a dialogue under "meta", which is not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from selfemo.common.errors import nearest
from selfemo.common.printable import quote
from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.files import parse_json, read_lines, read_text
from selfemo.corpora.formats import CorpusFormat
from selfemo.corpora.problems import Problem, ProblemSink
from selfemo.corpora.turns import TurnChecker

SPLITS = ("train", "dev", "test")
NOT_DEV = ("valid", "validation", "val")
"""Names that other projects give to the dev split."""
LABELS_FILE = "labels.json"
EVERYDAY_PATH = (Path(__file__).parents[1] / "everyday").resolve()
"""Directory of the bundled corpus: a link to examples/data/everyday in a checkout, package data in
an installed wheel."""
MAX_LABELS = 1_000
"""Most labels of a label set."""
LABEL_NAME = re.compile(r"(?=.{1,100}\Z)[a-z][a-z_-]*(?: [a-z_-]+)*")
"""What `selfemo.emotions.labels` allows, so that a label set which a run had can be read again."""


def read_jsonl(path: Path, report: ProblemSink, name: str = "jsonl") -> Corpus:
    """Read a directory of up to three splits, or one .jsonl file beside its labels.json.

    A single file named train, dev or test is that split; any other is a training split. A directory needs
    train.jsonl alone.
    """
    directory = path.parent if path.is_file() else path
    files = (
        {path.stem if path.stem in SPLITS else "train": path}
        if path.is_file()
        else {s: file for s in SPLITS if (file := path / f"{s}.jsonl").exists() or s == "train"}
    )
    if "dev" not in files and path.is_dir():
        for file in (path / f"{other}.jsonl" for other in NOT_DEV):
            if file.exists():
                report(Problem(file, 0, "is read under the name dev.jsonl alone: rename it, or move it away"))
    labels = read_labels(directory / LABELS_FILE, report)
    if not labels:
        return Corpus(name, (), ())
    conversations = [
        c for split, file in files.items() for c in read_jsonl_split(file, split, labels, report, name)
    ]
    return Corpus(name, labels, tuple(conversations))


def read_jsonl_unlabelled(path: Path, report: ProblemSink) -> list[Conversation]:
    """Read a directory's training split, or one .jsonl file of any name, without labels and votes."""
    file = path if path.is_file() else path / "train.jsonl"
    return read_jsonl_split(file, "train", None, report, path.stem)


def read_labels(path: Path, report: ProblemSink) -> tuple[str, ...]:
    """Read the closed label set, alphabetical; empty after a reported problem."""
    text = read_text(path, report)
    value = None if text is None else parse_json(path, text, report)
    if text is None:
        return ()
    if not isinstance(value, list) or not 2 <= len(value) <= MAX_LABELS:
        report(
            Problem(
                path,
                1,
                f"holds {quote(value)}, expected a list of at least two label names and at most {MAX_LABELS}",
            )
        )
        return ()
    bad = [item for item in value if not isinstance(item, str) or not LABEL_NAME.fullmatch(item)]
    if bad or len(set(value)) < len(value):
        wrong = f"label name {quote(bad[0])} is not valid" if bad else "a label name appears twice"
        report(
            Problem(
                path,
                1,
                f"{wrong}, expected distinct names of lower-case letters, single blanks, hyphens and _",
            )
        )
        return ()
    return tuple(sorted(value))


def read_jsonl_split(
    path: Path, split: str, labels: tuple[str, ...] | None, report: ProblemSink, corpus: str
) -> list[Conversation]:
    """Read one .jsonl file, dialogues in the order of their lines.

    Args:
        labels: the closed label set; None drops labels and votes unread.
    """
    checker = TurnChecker(path, labels or (), report)
    line_of: dict[str, int] = {}
    conversations = []
    for line, text in read_lines(path, report):
        value = parse_json(path, text, report, first_line=line)
        if value is None and text.strip() != "null":
            continue  # parse_json has reported it
        if not _has_keys(checker, line, "dialogue", value, required=("id", "turns"), optional=("meta",)):
            continue
        dialogue_id = value["id"]
        if not isinstance(dialogue_id, str) or not dialogue_id.strip() or not dialogue_id.isprintable():
            checker.fault(line, f"id is {quote(dialogue_id)}, expected a text that is not empty")
        elif line_of.setdefault(dialogue_id, line) != line:
            checker.fault(
                line,
                f"id {quote(dialogue_id)} is that of line {line_of[dialogue_id]}: give each dialogue its own",
            )
        else:
            turns = _turns(checker, line, value["turns"], labels is not None)
            if turns:
                conversations.append(Conversation(corpus, split, dialogue_id, turns))
    return conversations


def _turns(checker: TurnChecker, line: int, values: Any, with_labels: bool) -> tuple[Turn, ...]:
    if not isinstance(values, list) or not values:
        checker.fault(line, f"turns is {quote(values)}, expected a list of at least one turn")
        return ()
    turns = []
    for number, value in enumerate(values, start=1):
        where = f"turn {number}"
        if not _has_keys(
            checker, line, where, value, required=("speaker", "text"), optional=("labels", "votes")
        ):
            continue
        labels, votes = (value.get("labels", []), value.get("votes", {})) if with_labels else ([], {})
        if not isinstance(labels, list):
            checker.fault(
                line,
                f'labels of {where} are {quote(labels)}, expected a list such as ["{checker.example_label}"]',
            )
        elif not isinstance(votes, dict):
            checker.fault(
                line,
                f"votes of {where} are {quote(votes)}, expected an object such as "
                f'{{"{checker.example_label}": 2}}',
            )
        else:
            turn = checker.turn(line, value["speaker"], value["text"], labels, votes, where=where)
            turns += [turn] if turn is not None else []
    return tuple(turns)


def _has_keys(
    checker: TurnChecker,
    line: int,
    where: str,
    value: Any,
    required: tuple[str, ...],
    optional: tuple[str, ...],
) -> bool:
    if not isinstance(value, dict):
        checker.fault(line, f"{where} is {quote(value)}, expected an object with {', '.join(required)}")
        return False
    missing = [key for key in required if key not in value]
    unknown = [key for key in value if key not in (*required, *optional)]
    if missing:
        checker.fault(line, f"{where} has no {missing[0]!r}, expected an object with {', '.join(required)}")
    elif unknown:
        valid = (*required, *optional)
        checker.fault(
            line,
            f"{where} has the key {quote(unknown[0])}, expected "
            f"{', '.join(valid)}{nearest(unknown[0], valid)}",
        )
    return not missing and not unknown


def _read_everyday(path: Path, report: ProblemSink) -> Corpus:
    return read_jsonl(path, report, name="everyday")


FORMATS = (
    CorpusFormat(
        name="jsonl",
        read=read_jsonl,
        recognises=lambda path: (
            path.suffix == ".jsonl" or ((path / "train.jsonl").is_file() and path.resolve() != EVERYDAY_PATH)
        ),
        default_path=lambda data_root: None,
        what=(
            "a .jsonl file beside labels.json, or a directory with train.jsonl, labels.json and, if it has "
            "such splits, dev.jsonl and test.jsonl"
        ),
        read_unlabelled=read_jsonl_unlabelled,
    ),
    CorpusFormat(
        name="everyday",
        read=_read_everyday,
        recognises=lambda path: path.resolve() == EVERYDAY_PATH,
        default_path=lambda data_root: EVERYDAY_PATH,
        what="the bundled corpus of the project (examples/data/everyday in a checkout)",
    ),
)
