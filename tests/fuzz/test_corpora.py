"""Fuzz corpus files of every format.

Accepted text is printable and has labels of its set; all else is one line.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Conversation
from selfemo.corpora.problems import Problem, raise_first
from selfemo.corpora.readers.emorynlp import LABELS as EMORY_LABELS
from selfemo.corpora.readers.emorynlp import read_emorynlp_split
from selfemo.corpora.readers.emorynlp_video import read_emorynlp_video_split
from selfemo.corpora.readers.iemocap import SIX_WAY, _turns, label_set, read_evaluations
from selfemo.corpora.readers.jsonl import read_jsonl, read_jsonl_split
from selfemo.corpora.readers.meld import LABELS as MELD_LABELS
from selfemo.corpora.readers.meld import read_meld_split
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens

LABELS = ("anger", "joy", "neutral", "surprise")
MELD = (
    b"Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\r\n"
    b'1,"Hi, you",Ana,joy,positive,0,0\r\n2,No.,Ben,anger,negative,0,1\r\n'
)
MELD_TOKENS = [
    b"Dialogue_ID",
    b"Utterance",
    b"Emotion",
    b"\r\n",
    b'""',
    b",",
    b"1,a,Ana,joy,positive,3,4\r\n",
    b"joy",
    b"Speaker",
]
EMORY_CSV = (
    b"Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time\n"
    b'"Oh, hi.","[\'Ann Lee\', ""Bo O\'Dea""]",Mad,1,2,1,15,0,1\nNo.,[\'Bo\'],Sad,1,3,1,15,1,2\n'
)
EMORY_CSV_TOKENS = [
    b"Scene_ID",
    b"Season",
    b"\n",
    b'""',
    b"'",
    b"['A', ",
    b",",
    b"a,['A'],Mad,1,1,1,1,0,1\n",
    b"Sad",
]
OFFICIAL = {
    "episodes": [
        {
            "scenes": [
                {
                    "scene_id": "s1",
                    "utterances": [{"speakers": ["A", "B"], "transcript": "Hi.", "emotion": "Mad"}],
                }
            ]
        }
    ]
}
LISTED = [
    [{"text": "Hi.", "speaker": "Ana", "label": "Mad"}, {"text": "Oh", "speaker": "Ben", "label": "Sad"}],
    [],
]
EMORY_TOKENS = [
    f'"{key}": '.encode()
    for key in ("episodes", "scenes", "scene_id", "utterances", "speakers", "transcript", "emotion", "text")
]
DIALOGUE = {
    "id": "a",
    "turns": [{"speaker": "Ana", "text": "Hi", "labels": ["joy"], "votes": {"joy": 2}}],
    "meta": {},
}
JSONL_TOKENS = [
    f'"{key}": '.encode() for key in ("id", "turns", "speaker", "text", "labels", "votes", "joy", "meta")
]
TRANSCRIPT = (
    b"Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\nM: [BREATHING]\n"
    b"Ses01F_impro01_M000 [007.5650-011.3250]: Do you?\n"
)
EVALUATION = (
    b"% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    b"[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\n"
    b"C-E2:\tNeutral; Anger;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\nC-F1:\tAnger;\t()\n"
)
IEMOCAP_TOKENS = [
    b"[6.2 - 8.2]\tSes01F_impro01_F000\tneu\t[2, 2, 2]\n",
    b"C-E1:\tAnger;\t()\n",
    b"A-E1:",
    b"Ses01F_impro01_F000",
    b"\t",
    b"]: ",
]


def run(
    tally: Tally, read: Callable[[], list[Conversation]], content: object, labels: tuple[str, ...]
) -> None:
    """Read one input, and check the properties of all that was accepted."""
    found = tally.try_input(read, content)
    for conversation in [] if isinstance(found, UserError) else found:  # type: ignore[union-attr]
        assert conversation.turns
        assert conversation.dialogue_id.isprintable()
        for turn in conversation.turns:
            assert set(turn.labels) <= set(labels)
            assert turn.text == " ".join(turn.text.split()), "one line"
            assert not set(map(chr, range(32))) & set(turn.text + turn.speaker), "no control characters"
            json.dumps([turn.speaker, turn.text], ensure_ascii=False).encode()


def collects(read: Callable[[Callable[[Problem], None]], object]) -> None:
    """Read with a sink that returns: the reader must come to the end of any file."""
    problems: list[Problem] = []
    read(problems.append)
    assert all(str(problem).isprintable() for problem in problems)


@fuzz
def test_meld_csv(seed: int, tally: Tally, scratch: Path) -> None:
    path = scratch / "train_sent_emo.csv"
    read = functools.partial(read_meld_split, path, "train")
    for rng in tally.batch(seed):
        content = damaged(rng, [MELD], MELD_TOKENS) if rng.random() < 0.9 else of_tokens(rng, MELD_TOKENS)
        path.write_bytes(content)
        run(tally, lambda: read(raise_first), content, MELD_LABELS)
        collects(read)


@fuzz
def test_emorynlp_json(seed: int, tally: Tally, scratch: Path) -> None:
    path, sound = (
        scratch / "train.json",
        [json.dumps(OFFICIAL).encode(), json.dumps(LISTED, indent=1).encode()],
    )
    read = functools.partial(read_emorynlp_split, path, "train")
    for rng in tally.batch(seed):
        content = damaged(rng, sound, EMORY_TOKENS) if rng.random() < 0.9 else of_tokens(rng, EMORY_TOKENS)
        path.write_bytes(content)
        run(
            tally,
            lambda: read(raise_first),
            content,
            ("mad", "sad", "neutral", "joyful", "peaceful", "powerful", "scared"),
        )
        collects(read)


@fuzz
def test_emorynlp_csv(seed: int, tally: Tally, scratch: Path) -> None:
    path = scratch / "emorynlp_train_final.csv"
    read = functools.partial(read_emorynlp_video_split, path, "train")
    for rng in tally.batch(seed):
        sound = rng.random() < 0.9
        content = damaged(rng, [EMORY_CSV], EMORY_CSV_TOKENS) if sound else of_tokens(rng, EMORY_CSV_TOKENS)
        path.write_bytes(content)
        run(tally, lambda: read(raise_first), content, EMORY_LABELS)
        collects(read)


@fuzz
@pytest.mark.parametrize("labels", [LABELS, None])
def test_jsonl(labels: tuple[str, ...] | None, seed: int, tally: Tally, scratch: Path) -> None:
    path, sound = (
        scratch / "train.jsonl",
        [(json.dumps(DIALOGUE) + "\n" + json.dumps(DIALOGUE | {"id": "b"})).encode()],
    )
    for rng in tally.batch(seed):
        content = damaged(rng, sound, JSONL_TOKENS) if rng.random() < 0.9 else of_tokens(rng, JSONL_TOKENS)
        path.write_bytes(content)
        read = functools.partial(read_jsonl_split, path, "train", labels)
        run(tally, functools.partial(read, raise_first, "jsonl"), content, labels or ())
        collects(lambda report: read(report, "jsonl"))  # noqa: B023 - called at once


@fuzz
def test_jsonl_label_set(seed: int, tally: Tally, scratch: Path) -> None:
    (scratch / "train.jsonl").write_text(json.dumps(DIALOGUE))
    for rng in tally.batch(seed):
        content = damaged(rng, [b'["anger", "joy"]'], [b'"neutral"', b", ", b'"Joy"', b'"joy"'])
        (scratch / "labels.json").write_bytes(content)
        tally.try_input(lambda: read_jsonl(scratch / "train.jsonl", raise_first), content)


@fuzz
def test_iemocap_files(seed: int, tally: Tally, scratch: Path) -> None:
    transcript, evaluation = scratch / "transcript.txt", scratch / "evaluation.txt"
    labels = label_set(SIX_WAY)

    def read(report: Callable[[Problem], None]) -> list[Conversation]:
        turns = _turns(transcript, read_evaluations(evaluation, report), SIX_WAY, labels, report)
        return [Conversation("iemocap6", "train", "x", turns)] if turns else []

    for rng in tally.batch(seed):
        contents = [TRANSCRIPT, EVALUATION]
        which = rng.randint(0, 1)
        contents[which] = (
            damaged(rng, [contents[which]], IEMOCAP_TOKENS)
            if rng.random() < 0.9
            else of_tokens(rng, IEMOCAP_TOKENS)
        )
        transcript.write_bytes(contents[0])
        evaluation.write_bytes(contents[1])
        run(tally, lambda: read(raise_first), contents[which], labels)
        collects(read)


@pytest.mark.long
@pytest.mark.parametrize(
    "content",
    [
        b'"' + b'\\"' * 500_000,  # an unclosed string
        b'{"id": "a", "turns": [' + b",".join(b'{"k": 1}' for _ in range(100_000)) + b"]}",
        b"{"
        + b",".join(b'"k%d": 0' % i for i in range(70_000))
        + b', "k69999": 1}',  # the last of many keys stands twice
        b"a" + b" " * 1_000_000 + b"b",
        b"a[" * 500_000,
        b"[1.0 - 2.0]\tSes01F_impro01_F000\tneu\t[2, 2, 2]\n" + b"C-E1:\tAnger;\t()\n" * 100_000,
        b"x\n" * 200_000,
        (b"[" * 900 + b"]" * 900 + b"\n") * 300,
    ],
    ids=["open string", "objects", "repeated key", "blanks", "brackets", "votes", "faults", "depth"],
)
def test_what_once_took_quadratic_time_is_linear(content: bytes, tally: Tally, scratch: Path) -> None:
    path = scratch / "file"
    path.write_bytes(content)
    sink: Callable[[Problem], None] = lambda problem: None  # noqa: E731
    tally.try_input(lambda: read_meld_split(path, "train", sink), "meld")
    tally.try_input(lambda: read_emorynlp_split(path, "train", sink), "emorynlp")
    tally.try_input(lambda: read_jsonl_split(path, "train", LABELS, sink, "jsonl"), "jsonl")
    tally.try_input(lambda: _turns(path, read_evaluations(path, sink), SIX_WAY, LABELS, sink), "iemocap")
