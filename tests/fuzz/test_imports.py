"""Fuzz the files of every import format, and label maps: what is imported is a corpus without a problem."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.corpora.importing import import_corpus, import_format, import_formats
from selfemo.corpora.imports.goemotions import EMOTIONS
from selfemo.corpora.label_map import read_label_map
from selfemo.corpora.problems import Problem
from selfemo.corpora.readers.jsonl import read_jsonl_split, read_labels
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens

LINE = {"speaker": "Ana", "utterance": "Hi", "emotion": "joy", "annotation": "1400000"}
CHAT = {
    "id": 3,
    "conversations": [{"from": "human", "value": "Hi", "emotion": "sad"}, {"from": "gpt", "value": "Oh"}],
}
MESSAGES = {"messages": [{"role": "user", "content": "Hi"}, {"role": "system", "content": "x"}]}
GO = "text,id,author," + ",".join(EMOTIONS) + "\nHi,e1,a," + ",".join("01" + "0" * 26) + "\n"
SOUND: dict[str, dict[str, str]] = {
    "dailydialog": {
        "dialogues_text.txt": "Hi . __eou__ No ! __eou__\nA __eou__\n",
        "dialogues_emotion.txt": "4 1\n0\n",
    },
    "emotionlines": {"friends_train.json": json.dumps([[LINE, LINE | {"emotion": "non-neutral"}], [LINE]])},
    "empatheticdialogues": {
        "train.csv": "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"
        "hit:0,1,sad,Went.,5,It went_comma_ sadly.,5,\nhit:0,2,sad,Went.,9,Oh.,5,\n"
    },
    "goemotions": {"goemotions_1.csv": GO, "dev.tsv": "Hi\t1,2\te1\n"},
    "messages": {"log.jsonl": json.dumps(MESSAGES) + "\n" + json.dumps(CHAT)},
    "sharegpt": {"log.jsonl": json.dumps([CHAT, MESSAGES])},
}
TOKENS = [
    b"__eou__",
    b"\t",
    b",",
    b"\n",
    b'"from": ',
    b'"value": ',
    b'"annotation": ',
    b"joy",
    b"1",
    b"_comma_",
    b"[[",
    b"]]",
]


def test_every_format_is_fuzzed() -> None:
    assert set(SOUND) == set(import_formats())


@fuzz
@pytest.mark.parametrize("name", SOUND)
def test_import(name: str, seed: int, tally: Tally, scratch: Path) -> None:
    source, output = scratch / "source", scratch / "output"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for rng in tally.batch(seed):
        contents = {file: text.encode() for file, text in SOUND[name].items()}
        which = rng.choice(list(contents))
        sound = rng.random() < 0.9
        contents[which] = damaged(rng, [contents[which]], TOKENS) if sound else of_tokens(rng, TOKENS)
        for file, data in contents.items():
            (source / file).write_bytes(data)
        skip = rng.random() < 0.5
        read = functools.partial(import_corpus, import_format(name), source, output, skip=skip)
        found = tally.try_input(read, contents)
        if isinstance(found, UserError) or (found.problems and not skip):  # type: ignore[attr-defined]
            assert not output.exists()
            continue
        problems: list[Problem] = []
        labels = (
            read_labels(output / "labels.json", problems.append)
            if name not in ("messages", "sharegpt")
            else None
        )
        for split in ("train", "dev", "test"):
            if (output / f"{split}.jsonl").exists():
                assert read_jsonl_split(output / f"{split}.jsonl", split, labels, problems.append, "x")
        assert [problem for problem in problems if not problem.odd] == []
        shutil.rmtree(output)


@fuzz
def test_label_map(seed: int, tally: Tally, scratch: Path) -> None:
    path = scratch / "map.json"
    sound = b'{"happiness": "joy", "no emotion": "neutral", "other": null}'
    for rng in tally.batch(seed):
        content = damaged(rng, [sound], [b"null", b'"joy"', b'": "', b", ", b"{"])
        path.write_bytes(content)
        found = tally.try_input(lambda: read_label_map(path), content)
        if not isinstance(found, UserError):
            assert len(found.labels) >= 2  # type: ignore[attr-defined]
