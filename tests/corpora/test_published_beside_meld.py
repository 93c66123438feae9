"""Read what MELD's repository publishes beside MELD, in its own columns: Dyadic MELD and EmoryNLP's CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.corpora.check import check_corpus
from selfemo.corpora.conversation import Turn
from selfemo.corpora.registry import load_corpus

Write = Callable[[str, str | bytes], Path]
DYADIC = (
    "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Old_Dialogue_ID,Old_Utterance_ID,"
    "Season,Episode,StartTime,EndTime\n"
    '"Well, they closed the account.",Ana,sadness,negative,0,0,0,0,4,7,"00:20:57,256","00:21:00,049"\n'
    'You\u0092re a genius!,Ben,joy,positive,0,1,0,1,4,7,"00:21:01,927","00:21:03,261"\n'
    'You\u0092re a genius!,Ben,joy,positive,1,0,0,1,4,7,"00:21:01,927","00:21:03,261"\n'
    'Who?,Cleo,surprise,negative,1,1,0,2,4,7,"00:21:03,927","00:21:04,261"\n'
)
EMORY = (
    "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time\n"
    "Soup.,['Ana Lind'],Neutral,1,1,1,15,00:00:03.795,00:00:05.004\n"
    "\"Hot, thanks!\",\"['Ben O', 'Cleo']\",Joyful,1,3,1,15,00:00:05.171,00:00:07.423\n"
    'Yes?,"[""Ana O\'Dea""]",Peaceful,1,1,2,3,00:00:01.795,00:00:02.004\n'
)


@pytest.fixture
def dyadic(write: Write) -> Path:
    for split in ("train", "dev", "test"):
        path = write(f"dya/{split}_sent_emo_dya.csv", DYADIC)
    return path.parent


@pytest.fixture
def emory(write: Write) -> Path:
    for split in ("train", "dev", "test"):
        path = write(f"emory/emorynlp_{split}_final.csv", EMORY)
    return path.parent


def test_dyadic_meld_is_a_corpus_of_its_own(dyadic: Path) -> None:
    corpus = load_corpus("auto", dyadic)
    assert corpus.name == "meld_dyadic", "MELD's published counts are not its counts"
    assert [c.key for c in corpus.split("dev")] == ["meld_dyadic/dev/0", "meld_dyadic/dev/1"]
    assert [t.text for t in corpus.split("train")[1].turns] == ["You're a genius!", "Who?"]
    report = check_corpus(str(dyadic))
    assert report.problems == ()
    assert not any("published" in oddity for oddity in report.oddities)


def test_emorynlp_scenes_are_named_by_season_episode_and_scene(emory: Path) -> None:
    corpus = load_corpus("auto", emory)
    assert [c.key for c in corpus.split("train")] == [
        "emorynlp_video/train/s01_e15_c01",
        "emorynlp_video/train/s02_e03_c01",
    ]
    assert corpus.split("test")[0].turns == (
        Turn("Ana Lind", "Soup.", ("neutral",)),
        Turn("Ben O, Cleo", "Hot, thanks!", ("joyful",)),
    )
    assert corpus.split("test")[1].turns[0].speaker == "Ana O'Dea"
    assert check_corpus(str(emory)).problems == ()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (",1,3,1,15,", ",1,1,1,15,", "final.csv:3: scene s01_e15_c01 has utterance 1 twice, first in line 2"),
        (",1,3,1,15,", ",1,3,one,15,", "final.csv:3: Season is 'one', expected a whole number"),
        ("Scene_ID", "Scene", "final.csv:1: header .* needs the column 'Scene_ID' exactly once"),
        ("Joyful", "Joy", "final.csv:3: label 'Joy' is unknown"),
    ],
)
def test_a_bad_row_names_its_line(emory: Path, before: str, after: str, message: str) -> None:
    (emory / "emorynlp_train_final.csv").write_text(EMORY.replace(before, after))
    with pytest.raises(UserError, match=message):
        load_corpus("emorynlp_video", emory)


def test_rows_out_of_order_are_noticed(emory: Path) -> None:
    (emory / "emorynlp_dev_final.csv").write_text(EMORY.replace("1,3,1,15,00:00:05", "1,0,1,15,00:00:05"))
    assert "utterance 0 of dialogue s01_e15_c01 stands after 1" in str(check_corpus(str(emory)).problems[0])
