"""Read IEMOCAP (Busso et al., 2008), six-way and four-way, from the official release.

Its licence forbids redistribution.

    Session{1-5}/dialog/transcriptions/NAME.txt   the turns, in order
    Session{1-5}/dialog/EmoEvaluation/NAME.txt    one block per turn: the agreed code, the evaluators' choices

Six-way keeps the codes hap, sad, neu, ang, exc, fru; four-way keeps ang, hap and exc as one, sad,
neu. A turn with any other code (xxx is "no agreement") stays in the dialogue as context, without
labels or votes. Published loaders drop such turns, which changes the context a model sees but not
the turns that are scored. Votes are the evaluators' (C-E*); the actors' own (C-F*, C-M*) and the
dimensional ratings (A-*) are not votes. Session 5 is the test split. The last 20 dialogues of
sessions 1-4, in order of session and file name, are dev, since the release names no dev split.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from selfemo.common.errors import nearest
from selfemo.common.printable import quote
from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.files import read_lines
from selfemo.corpora.formats import CorpusFormat
from selfemo.corpora.problems import Problem, ProblemSink
from selfemo.corpora.turns import TurnChecker, labels_from_votes, sort_votes

SESSIONS = (1, 2, 3, 4, 5)
TEST_SESSION = 5
DEV_DIALOGUES = 20
MAX_VOTES = 100
"""Most categories that the evaluators of a turn chose together; the release has at most a dozen."""

SIX_WAY: Mapping[str, str] = {
    "ang": "angry",
    "exc": "excited",
    "fru": "frustrated",
    "hap": "happy",
    "neu": "neutral",
    "sad": "sad",
}
FOUR_WAY: Mapping[str, str] = {"ang": "angry", "exc": "happy", "hap": "happy", "neu": "neutral", "sad": "sad"}

_CODE_OF_CATEGORY = {
    "anger": "ang",
    "disgust": "dis",
    "excited": "exc",
    "fear": "fea",
    "frustration": "fru",
    "happiness": "hap",
    "neutral": "neu",
    "neutral state": "neu",
    "other": "oth",
    "sadness": "sad",
    "surprise": "sur",
}
"""Category in an evaluator's line, in lower case, to the release's code."""
_CODES = {*_CODE_OF_CATEGORY.values(), "xxx"}

_SPOKEN = re.compile(r"(?P<id>[^\s:\[]++)\s*+(?:\[[^\]]*+\])?+\s*+:\s*+(?P<text>.*)")
"""A transcript line. The time in brackets may be malformed or missing, and is not used. The pattern
never backtracks, so it takes linear time."""
_TURN_ID = re.compile(r"(?:Ses\w+_)?(?P<speaker>[FM])(?:XX)?\d*")
_BLOCK_HEAD = re.compile(r"\[[^\]]*\]\t(?P<id>\S+)\t(?P<code>\S+)\t\[[^\]]*\]")
_OTHER_LINE = re.compile(r"(?:C-[FM]\d*|A-[EFM]\d*):")


@dataclass(frozen=True)
class Evaluation:
    """The evaluators' judgement of one turn."""

    line: int
    code: str
    """The agreed code, "xxx" if they did not agree."""
    vote_codes: tuple[str, ...]
    """Every category that an evaluator chose, as codes; one evaluator may choose several."""


def label_set(label_of_code: Mapping[str, str]) -> tuple[str, ...]:
    """Return the closed label set of a mapping from codes to labels."""
    return tuple(sorted(set(label_of_code.values())))


def read_iemocap(root: Path, report: ProblemSink, name: str, label_of_code: Mapping[str, str]) -> Corpus:
    """Read IEMOCAP from the directory that holds Session1 to Session5."""
    labels = label_set(label_of_code)
    training: list[Conversation] = []
    test: list[Conversation] = []
    for session in SESSIONS:
        directory = root / f"Session{session}" / "dialog"
        # macOS leaves files "._*" behind
        transcripts = sorted(p for p in directory.glob("transcriptions/*.txt") if not p.name.startswith("."))
        if not transcripts:
            report(
                Problem(
                    directory / "transcriptions",
                    0,
                    "holds no .txt file, expected the official IEMOCAP release: check the path",
                )
            )
        for transcript in transcripts:
            if not transcript.stem.isprintable():
                report(
                    Problem(
                        transcript,
                        0,
                        "has a name that is not printable, expected that of a dialogue: rename it",
                    )
                )
                continue
            evaluations = read_evaluations(directory / "EmoEvaluation" / transcript.name, report)
            turns = _turns(transcript, evaluations, label_of_code, labels, report)
            target = test if session == TEST_SESSION else training
            target += (
                [Conversation(name, "test" if session == TEST_SESSION else "train", transcript.stem, turns)]
                if turns
                else []
            )
    if training and len(training) <= DEV_DIALOGUES:
        report(
            Problem(
                root,
                0,
                f"sessions 1-4 hold {len(training)} dialogues, "
                f"expected more than the {DEV_DIALOGUES} that become dev",
            )
        )
    dev = [Conversation(name, "dev", c.dialogue_id, c.turns) for c in training[-DEV_DIALOGUES:]]
    return Corpus(name, labels, (*training[:-DEV_DIALOGUES], *dev, *test))


def read_evaluations(path: Path, report: ProblemSink) -> dict[str, Evaluation]:
    """Read one EmoEvaluation file: turn id to the evaluators' judgement."""
    evaluations: dict[str, Evaluation] = {}
    current = ""
    for line, text in read_lines(path, report):
        text = text.strip()
        if text.startswith(("%", "#")) or _OTHER_LINE.match(text):
            continue
        head = _BLOCK_HEAD.fullmatch(text)
        if head:
            current, code = head["id"], head["code"]
            if code not in _CODES:
                valid = sorted(_CODES)
                report(
                    Problem(
                        path,
                        line,
                        f"code {quote(code)} is unknown, expected one of "
                        f"{', '.join(valid)}{nearest(code, valid)}",
                    )
                )
            elif current in evaluations:
                report(
                    Problem(
                        path,
                        line,
                        f"turn {current} is evaluated twice, "
                        f"first in line {evaluations[current].line}: remove one",
                    )
                )
            else:
                evaluations[current] = Evaluation(line, code, ())
                continue
            current = ""
        elif not re.match(r"C-E\d+:", text):
            report(
                Problem(
                    path, line, f"is {quote(text)}, expected a turn's head, an evaluator's line or a comment"
                )
            )
        elif current:
            known = evaluations[current]
            votes = known.vote_codes + _vote_codes(path, line, text, report)
            if len(votes) > MAX_VOTES:
                report(
                    Problem(
                        path,
                        line,
                        f"is past the {MAX_VOTES} categories a turn may have: "
                        "remove lines that the release does not have",
                    )
                )
            else:
                evaluations[current] = Evaluation(known.line, known.code, votes)
    return evaluations


def _vote_codes(path: Path, line: int, text: str, report: ProblemSink) -> tuple[str, ...]:
    """The categories of a line such as `C-E2:\\tFrustration; Anger;\\t(comment)`."""
    chosen = text.partition(":")[2].split("(", 1)[0].split(";")
    names = [name.strip() for name in chosen if name.strip()]
    for name in names:
        if name.lower() not in _CODE_OF_CATEGORY:
            hint = nearest(name.lower(), _CODE_OF_CATEGORY)
            report(
                Problem(
                    path,
                    line,
                    f"category {quote(name)} is unknown, expected one of "
                    f"{', '.join(_CODE_OF_CATEGORY)}{hint}",
                )
            )
    return tuple(_CODE_OF_CATEGORY[name.lower()] for name in names if name.lower() in _CODE_OF_CATEGORY)


def _turns(
    path: Path,
    evaluations: Mapping[str, Evaluation],
    label_of_code: Mapping[str, str],
    labels: tuple[str, ...],
    report: ProblemSink,
) -> tuple[Turn, ...]:
    checker = TurnChecker(path, labels, report)
    turns = []
    line_of: dict[str, int] = {}
    for line, text in read_lines(path, report):
        spoken = _SPOKEN.fullmatch(text.strip())
        turn_id = _TURN_ID.fullmatch(spoken["id"]) if spoken else None
        if spoken is None or turn_id is None:
            checker.fault(line, f"is {quote(text)}, expected `Ses01F_impro01_F000 [006.2901-008.2357]: text`")
            continue
        full_id = spoken["id"]
        if full_id in evaluations and line_of.setdefault(full_id, line) != line:
            checker.fault(line, f"turn {full_id} appears twice, first in line {line_of[full_id]}: remove one")
            continue
        turn_labels, votes = _gold(evaluations.get(full_id), label_of_code)
        turn = checker.turn(line, turn_id["speaker"], spoken["text"], turn_labels, votes)
        turns += [turn] if turn is not None else []
    for turn_id_evaluated, evaluation in evaluations.items():
        if turn_id_evaluated not in line_of:
            checker.fault(
                0,
                f"has no turn {turn_id_evaluated}, "
                f"which line {evaluation.line} of its EmoEvaluation file evaluates",
            )
    return tuple(turns)


def _gold(
    evaluation: Evaluation | None, label_of_code: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return (labels, votes) of a turn; both are empty if its agreed code is outside the label set."""
    if evaluation is None or evaluation.code not in label_of_code:
        return (), {}
    votes = Counter(label_of_code[code] for code in evaluation.vote_codes if code in label_of_code)
    return labels_from_votes(sort_votes(votes), primary=label_of_code[evaluation.code]), dict(votes)


def _format(name: str, label_of_code: Mapping[str, str], default: bool) -> CorpusFormat:
    return CorpusFormat(
        name=name,
        read=functools.partial(read_iemocap, name=name, label_of_code=label_of_code),
        recognises=lambda path: default and (path / "Session1" / "dialog" / "EmoEvaluation").is_dir(),
        default_path=lambda data_root: data_root / "iemocap" if data_root else None,
        what="the official release: a directory with Session1 to Session5",
    )


FORMATS = (_format("iemocap6", SIX_WAY, default=True), _format("iemocap4", FOUR_WAY, default=False))
