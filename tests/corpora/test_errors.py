"""Test that every malformed MELD, EmoryNLP or JSONL file is refused with its file, its line and a
remedy.

Whatever a file holds, a reader returns conversations or raises UserError.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.corpora import files
from selfemo.corpora.problems import Problem, raise_first
from selfemo.corpora.readers.emorynlp import read_emorynlp_split
from selfemo.corpora.readers.jsonl import read_jsonl_split, read_labels
from selfemo.corpora.readers.meld import read_meld_split

Write = Callable[[str, str | bytes], Path]
HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\r\n"
GOOD = '1,"Hi, you",Ana,joy,positive,0,0\r\n'


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", 0, "is empty"),
        ("Sr No.,Utterance,Speaker\r\n", 1, "needs the column 'Emotion' exactly once"),
        (HEADER.replace("Sr No.", "Speaker"), 1, "needs the column 'Speaker' exactly once"),
        (HEADER + GOOD + "2,Hi, you,Ana,joy,positive,0,1\r\n", 3, "has 8 fields, expected 7"),
        (
            HEADER + '1,"two\r\nlines",Ana,joy,positive,0,0\r\n' + "2,a,Ana,joi,positive,0,1\r\n",
            4,
            "label 'joi' is unknown",
        ),
        (HEADER + "2,a,Ana,joi,positive,0,1\r\n", 2, "did you mean 'joy'?"),
        (HEADER + GOOD + "2,  ,Ana,joy,positive,0,1\r\n", 3, "text is empty"),
        (HEADER + GOOD + "2,a,,joy,positive,0,1\r\n", 3, "speaker is empty"),
        (HEADER + GOOD + "2,a,Ana,joy,positive,x,1\r\n", 3, "Dialogue_ID or Utterance_ID is 'x'"),
        (HEADER + GOOD + GOOD, 3, "has utterance 0 twice, first in line 2"),
        (
            HEADER + GOOD + '2,"never closed,Ana,joy,positive,0,1\r\n3,a,Ana,joy,positive,0,2\r\n',
            3,
            "not valid CSV",
        ),
        (HEADER + GOOD + '2,"never closed,' + "x" * 200_000, 3, "not valid CSV"),
        (
            HEADER + GOOD + f"2,{'x' * 10_001},Ana,joy,positive,0,1\r\n",
            3,
            "has 10001 characters, expected at most 10000",
        ),
        ((HEADER + GOOD).encode() + b"2,it\x92s,Ana,joy,positive,0,1\r\n", 3, "byte 0x92 is not UTF-8"),
    ],
)
def test_meld(write: Write, content: str | bytes, line: int, message: str) -> None:
    path = write("train_sent_emo.csv", content)
    problems: list[Problem] = []
    read_meld_split(path, "train", problems.append)
    assert message in str(problems[0])
    assert problems[0].line == line
    with pytest.raises(UserError) as raised:
        read_meld_split(path, "train", raise_first)
    assert str(raised.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert "\n" not in str(raised.value)


def test_meld_keeps_row_order_over_gaps_and_interleaving(write: Write) -> None:
    rows = ["1,a,Ana,Joy,p,7,5", "2,b,Ben,joy,p,3,0", "3,c,Ana,joy,p,7,9", "4,d,Ben,joy,p,7,6"]
    path = write("x.csv", HEADER + "\r\n".join(rows))
    conversations = read_meld_split(path, "dev", raise_first)
    assert [(c.dialogue_id, [t.text for t in c.turns]) for c in conversations] == [
        ("7", ["a", "c", "d"]),
        ("3", ["b"]),
    ]


def _listed(*utterances: object) -> str:
    return json.dumps([list(utterances)], indent=1)


UTTERANCE = {"text": "Hi", "speaker": "Ana", "label": "Mad"}


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("[[", 1, "not valid JSON"),
        ("7", 1, "expected a list of scenes"),
        ("[" * 100_000, 1, "not usable JSON"),
        (
            _listed(UTTERANCE, {**UTTERANCE, "label": "Mat"}),
            8,
            "label 'Mat' is unknown, expected one of joyful, mad",
        ),
        (_listed(UTTERANCE, {**UTTERANCE, "text": '{}"{'}, {**UTTERANCE, "text": ""}), 13, "text is empty"),
        (_listed(UTTERANCE, {"text": "Hi", "speaker": "Ana"}), 8, "has no 'label'"),
        (_listed(UTTERANCE, 5), 0, "utterance 2 is 5, expected an object"),
        ('[[{"text": "a",\n "text": "b"}]]', 1, "key 'text' appears twice"),
        ('{"episodes": [\n{"scenes": 3}]}', 2, "has no list 'scenes'"),
        ('{"episodes": [{"scenes": [\n{"utterances": []}]}]}', 2, "scene_id is None"),
        (
            '{"episodes": [{"scenes": [{"scene_id": "s", "utterances": ['
            '\n\n{"transcript": "a", "speakers": "A", "emotion": "Mad"}]}]}]}',
            3,
            "expected a list of names",
        ),
    ],
)
def test_emorynlp(write: Write, content: str, line: int, message: str) -> None:
    problems: list[Problem] = []
    read_emorynlp_split(write("train_data.json", content), "train", problems.append)
    assert message in problems[0].message
    assert problems[0].line == line


LABELS = ("anger", "joy", "neutral", "surprise")
DIALOGUE = (
    '{"id": "a", "turns": [{"speaker": "Ana", "text": "Hi", "labels": ["joy"], "votes": {"joy": 2}}]}\n'
)


def _turn(**changes: object) -> str:
    return json.dumps({"id": "b", "turns": [{"speaker": "Ana", "text": "Hi", **changes}]})


@pytest.mark.parametrize(
    ("second_line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "dialogue is [1], expected an object with id, turns"),
        ("null", "dialogue is None, expected an object"),
        (DIALOGUE, "id 'a' is that of line 1"),
        ('{"id": 3, "turns": []}', "id is 3, expected a text"),
        ('{"id": "b", "turns": []}', "turns is [], expected a list of at least one turn"),
        ('{"id": "b"}', "dialogue has no 'turns'"),
        ('{"id": "b", "id": "c", "turns": []}', "key 'id' appears twice"),
        (
            _turn(label=["joy"]),
            "turn 1 has the key 'label', expected speaker, text, labels, votes (did you mean 'labels'?)",
        ),
        (_turn(labels="joy"), "labels of turn 1 are 'joy', expected a list"),
        (_turn(labels=["surprize"]), "turn 1: label 'surprize' is unknown"),
        (_turn(labels=["joy", "Joy"]), "name one twice"),
        (_turn(labels=list(LABELS)), "has 4 labels, expected at most 3"),
        (_turn(labels=[1]), "label 1 is unknown"),
        (_turn(votes=["joy"]), "votes of turn 1 are ['joy'], expected an object"),
        (_turn(votes={"joy": 0}), "votes for joy are 0, expected a whole number"),
        (_turn(votes={"joy": True}), "votes for joy are True"),
        (_turn(votes={"joi": 1}), "label 'joi' is unknown"),
        (_turn(text=" "), "text is empty"),
        (_turn(text=None), "text is None, expected a text"),
        (_turn(text="\ud800"), "half of a surrogate pair"),
        (_turn(speaker="x" * 201), "speaker has 201 characters"),
        ('{"id": "b", "turns": ' + "9" * 5000 + "}", "not usable JSON"),
        ("x" * 50, "not valid JSON"),
    ],
)
def test_jsonl(write: Write, second_line: str, message: str) -> None:
    path = write("train.jsonl", DIALOGUE + second_line + "\n\n")
    problems: list[Problem] = []
    kept = read_jsonl_split(path, "train", LABELS, problems.append, "jsonl")
    assert message in problems[0].message
    assert problems[0].line == 2
    assert kept[0].dialogue_id == "a"
    with pytest.raises(UserError, match=r"train\.jsonl:2: "):
        read_jsonl_split(path, "train", LABELS, raise_first, "jsonl")


def test_jsonl_reads_labels_votes_and_line_separators(write: Write) -> None:
    turns = [
        {
            "speaker": "Ana",
            "text": "Oh\u2028no",
            "labels": ["Surprise", "joy"],
            "votes": {"joy": 1, "surprise": 3},
        },
        {"speaker": "Ben", "text": "What", "votes": {"joy": 1, "anger": 2, "neutral": 1, "surprise": 1}},
        {"speaker": "Ana", "text": "Nothing"},
    ]
    path = write(
        "train.jsonl", json.dumps({"id": "a", "turns": turns, "meta": {"from": 1}}, ensure_ascii=False)
    )
    first, second, third = read_jsonl_split(path, "train", LABELS, raise_first, "jsonl")[0].turns
    assert (first.text, first.labels, first.votes) == (
        "Oh no",
        ("surprise", "joy"),
        (("surprise", 3), ("joy", 1)),
    )
    assert second.labels == ("anger", "joy", "neutral")
    assert (third.labels, third.votes) == ((), ())


@pytest.mark.parametrize(
    "content",
    ["{}", '["joy"]', '["joy", "joy"]', '["joy", "Anger"]', '["joy", "a,b"]', '["joy", 1]', "[", "null"],
)
def test_label_files_are_checked(write: Write, content: str) -> None:
    with pytest.raises(UserError, match=r"labels\.json:1: "):
        read_labels(write("labels.json", content), raise_first)


def test_limits_on_file_and_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("train.jsonl", DIALOGUE)
    monkeypatch.setattr(files, "MAX_LINE_CHARS", 50)
    with pytest.raises(UserError, match=r"train\.jsonl:1: has 96 characters, expected at most 50"):
        read_jsonl_split(path, "train", LABELS, raise_first, "jsonl")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 20)
    with pytest.raises(UserError, match=r"train\.jsonl: is \d+ bytes, expected at most 20"):
        read_jsonl_split(path, "train", LABELS, raise_first, "jsonl")


@pytest.mark.parametrize("name", ["nowhere.jsonl", "."])
def test_a_missing_file_or_a_directory_is_a_user_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"does not exist|is not a regular file"):
        read_jsonl_split(tmp_path / name, "train", LABELS, raise_first, "jsonl")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["joy", "id", "turns"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "turns", "speaker", "text", "labels", "votes", "joy", "episodes"]),
            inner,
            max_size=4,
        )
        | st.fixed_dictionaries({"id": inner, "turns": inner})
        | st.fixed_dictionaries({"speaker": inner, "text": inner, "labels": inner})
        | st.fixed_dictionaries({"transcript": inner, "speakers": inner, "emotion": inner})
        | st.fixed_dictionaries({"episodes": st.lists(st.fixed_dictionaries({"scenes": inner}), max_size=2)})
    ),
    max_leaves=12,
)
FILES = (
    st.binary(max_size=300)
    | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | st.lists(st.text(alphabet='a,"\r\n1\x00é', max_size=20), max_size=6).map(
        lambda rows: (HEADER + "\n".join(rows)).encode()
    )
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=FILES)
@example(content=b"[null, false]")  # null first, then names that neither sort nor hash
@example(content=b"[null, []]")
def test_readers_raise_only_user_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz"
    path.write_bytes(content)
    readers: list[Callable[[], object]] = [
        lambda: read_meld_split(path, "train", raise_first),
        lambda: read_emorynlp_split(path, "train", raise_first),
        lambda: read_jsonl_split(path, "train", LABELS, raise_first, "jsonl"),
        lambda: read_labels(path, raise_first),
    ]
    for read in readers:
        with contextlib.suppress(UserError):
            read()
    collected: list[Problem] = []
    for conversation in read_jsonl_split(path, "train", LABELS, collected.append, "jsonl"):
        # A reader that collects problems goes on after each and keeps no empty dialogue.
        assert conversation.turns
    assert not [problem for problem in collected if "\n" in problem.message]
