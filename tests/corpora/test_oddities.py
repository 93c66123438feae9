"""Test that destroyed texts, rows out of order and copies unlike the published corpus are told, with lines.

Sound texts of other languages, and the published corpora, are no finding.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfemo.commands.corpus import app
from selfemo.corpora.check import check_corpus
from selfemo.corpora.damage import find_damage
from selfemo.corpora.problems import Problem, raise_first
from selfemo.corpora.readers.emorynlp import read_emorynlp_split
from selfemo.corpora.readers.meld import FILES, read_meld_split
from selfemo.corpora.text import clean_text

Write = Callable[[str, str | bytes], Path]
SOUND = "It’s a café; don’t worry, “we’ve” time…"
HEADER = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n"


@pytest.mark.parametrize(
    "text",
    [
        SOUND.encode("ascii", "replace").decode(),
        SOUND.replace("’", "\ufffd"),
        SOUND.encode("mac_roman").decode("latin-1"),
        SOUND.encode("mac_roman").decode("cp1252", "replace"),
        SOUND.encode().decode("mac_roman"),
        SOUND.encode().decode("latin-1"),
        SOUND.encode("cp1252").decode("mac_roman"),
        SOUND.encode("cp1252").decode("cp850"),
        "“Hello” he said".encode("mac_roman").decode("latin-1"),
        "Привет, мир".encode().decode("latin-1"),
        "今天很好".encode().decode("cp1252", "replace"),
        "I don t know",
        "?? ???, ????",
        "it&#39;s &quot;fine&quot;",
        r"it\u2019s fine",
        *(
            "It’s a café".encode().decode(codec)
            for codec in ("cp437", "cp850", "cp1250", "cp1251", "cp1253", "iso8859-2", "gbk", "cp932")
        ),
        "It&rsquo;s fine",
        "Fine.<br />And you?",
        "it<U+2019>s fine",
        "It=E2=80=99s fine",
        "It%27s%20fine",
        r"it\'s fine",
        r"it\342\200\231s fine",
        "it_x0092_s fine",
    ],
)
def test_destroyed_texts_are_found(text: str) -> None:
    assert find_damage(clean_text(text)) is not None


@pytest.mark.parametrize(
    "text",
    [
        SOUND,
        "What?! Really?? So what? Is it?",
        "????",
        "«CAFÉ» à la carte, Müßiggang «ça»",
        "¿Qué es? ¡¿Qué?! país, aquí",
        "O que você não vê? Ó meu!",
        "Trời ơi, được không?",
        "你好吗？今天 AT&T; R&D a_b",
        "می\u200cخواهم Привет नमस्ते",
        "don`t, don´t, donʼt, rock'n'roll",
        "100% sure, 20%2 is 0, <3 a=b _why_ so?",
        "Ці, її, Ещё «всё»; Γιατί όχι; Żółć, ŠĚ; Çok; Það ráð; 窶れた顔",
    ],
)
def test_sound_texts_are_no_finding(text: str) -> None:
    assert find_damage(clean_text(text)) is None


@given(st.text(alphabet="?!. nt'’Õ\ufffdÃ©√&;Ò", max_size=200))
def test_any_text_is_judged(text: str) -> None:
    found = find_damage(clean_text(text))
    assert found is None or found[1].isprintable()


def rows(write: Write, name: str, order: list[tuple[int, int]]) -> Path:
    lines = [f"line {d} {u},Ana,joy,{d},{u}" for d, u in order]
    return write(name, HEADER + "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("order", "lines"),
    [
        ([(0, 0), (0, 2), (0, 5), (1, 3), (1, 4)], []),  # gaps, and a start above 0, are as published
        ([(0, 2), (0, 0), (0, 3), (0, 1)], [3, 5]),
        ([(0, 0), (1, 0), (0, 1), (1, 1)], [4, 5]),
        ([(1, 0), (1, 1), (0, 0), (0, 1)], []),  # whole dialogues in another order
    ],
)
def test_rows_out_of_order_are_told_with_their_lines(
    write: Write, order: list[tuple[int, int]], lines: list[int]
) -> None:
    path = rows(write, "x.csv", order)
    found: list[Problem] = []
    read_meld_split(path, "train", found.append)
    assert [problem.line for problem in found] == lines
    assert all(problem.odd for problem in found)
    assert len(read_meld_split(path, "train", raise_first)) == len({d for d, _ in order}), "reading goes on"


def test_utterances_of_emorynlp_out_of_order_are_told(write: Write) -> None:
    scenes = [
        {
            "scene_id": f"s01_e01_c0{scene}",
            "utterances": [
                {
                    "utterance_id": f"s01_e01_c0{scene}_u{number:03}",
                    "speakers": ["Ana"],
                    "transcript": f"line {number}",
                    "emotion": "Sad",
                }
                for number in numbers
            ],
        }
        for scene, numbers in ((1, (1, 2, 4)), (2, (2, 1, 3)))
    ]
    path = write("x.json", json.dumps({"episodes": [{"scenes": scenes}]}, indent=0))
    found: list[Problem] = []
    assert len(read_emorynlp_split(path, "train", found.append)) == 2
    (problem,) = found
    assert (problem.odd, problem.line > 1) == ("a row out of order", True)
    assert "utterance 1 of dialogue s01_e01_c02 stands after 2" in str(problem)


def test_a_shuffled_file_is_unfit_and_a_few_damaged_rows_are_not(write: Write) -> None:
    order = [(d, u) for d in range(40) for u in range(10)]
    for split, name in FILES.items():
        rows(write, f"m/{name}", random.Random(0).sample(order, len(order)) if split == "dev" else order)
    train = write("m/x", "").parent / FILES["train"]
    train.write_text(train.read_text().replace("line 3 3", "it?s 3 3", 1))
    report = check_corpus(str(train.parent))
    assert {problem.path.name for problem in report.problems} == {FILES["dev"]}
    assert len(report.problems) > 300
    assert any("train_sent_emo.csv:35: text has another character" in odd for odd in report.oddities)
    assert any("the published meld has 1,038 of 9,989" in odd for odd in report.oddities)
    assert any("100% of the labelled turns are joy" in odd for odd in report.oddities)


def test_repeated_dialogues_and_shared_splits_are_told(write: Write) -> None:
    line = '{{"id": "{}", "turns": [{{"speaker": "A", "text": "{}", "labels": ["joy"]}}]}}\n'
    texts = ["We were on a break and everybody knows it", "It rained for three days without a pause"]
    write("c/train.jsonl", "".join(line.format(i, texts[i % 2]) for i in range(4)))
    write("c/dev.jsonl", line.format("x", texts[0]))
    write("c/test.jsonl", line.format("x", "Something else that nobody has said before"))
    report = check_corpus(str(write("c/labels.json", '["joy", "anger"]').parent))
    assert report.problems == ()
    assert [odd.split(":")[0] for odd in report.oddities] == ["train", "train", "train", "dev"]
    assert "dialogue 2 repeats dialogue 0" in report.oddities[0]
    assert "1 of 1 long texts also occur in train" in report.oddities[-1]


def test_lost_apostrophes_of_a_whole_split_are_told(write: Write) -> None:
    texts = ["I dont know", "Im sure thats it"]
    turns = [f'{{"speaker": "A", "text": "{texts[i % 2]} {i}", "labels": ["joy"]}}' for i in range(30)]
    path = write("c/train.jsonl", f'{{"id": "1", "turns": [{", ".join(turns)}]}}\n')
    write("c/labels.json", '["joy", "anger"]')
    assert any("apostrophe" in odd for odd in check_corpus(str(path)).oddities)


@pytest.mark.parametrize("name", ["meld", "emorynlp"])
def test_the_published_corpora_pass(name: str, data_root: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(data_root / name)])
    assert result.exit_code == 0, result.output
    assert "no problems" in result.output


def test_a_rewritten_copy_of_the_published_corpus_is_told(data_root: Path, tmp_path: Path) -> None:
    """Change what a count cannot show: case and apostrophes, then one label."""
    for name in FILES.values():
        with (data_root / "meld" / name).open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        for row in table:
            row["Utterance"] = row["Utterance"].lower().replace("’", "").replace("'", "") or "-"
        table[0]["Emotion"] = "fear" if table[0]["Emotion"] != "fear" else "joy"
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    told = " ".join(check_corpus(str(tmp_path)).oddities)
    for part in ("other labels", "hold a capital letter", "hold an apostrophe", "apostrophe: they were lost"):
        assert part in told
    assert "a blank before" not in told


def test_a_copy_that_was_split_into_words_is_told(data_root: Path, tmp_path: Path) -> None:
    for name in FILES.values():
        text = (data_root / "meld" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(re.sub(r"(?<=\w)(?=[.!?]|['’]s)", " ", text), encoding="utf-8")
    odd = check_corpus(str(tmp_path)).oddities
    assert sum("hold a blank before a mark or 's" in oddity for oddity in odd) == len(FILES), odd
