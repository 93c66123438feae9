"""Dev splits drawn from the training dialogues: which, when, and that training does not see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.corpora.check import check_corpus
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.dev_split import draw_dev
from selfemo.corpora.labelled import hide_labels
from selfemo.evaluation.run import read_corpus_of
from selfemo.inference.finished_model import FinishedModel
from selfemo.models.architecture import architecture_by_name
from tests.helpers.scripted import LABELS, conversation

Write = Callable[[str, str | bytes], Path]
TRAIN = tuple(conversation(f"d{i}", f"Ann[joy]: my line {i}", f"Bo[anger]: to it {i}") for i in range(20))
BARE = conversation("bare", "Ann: nobody says", "Bo: what this is")
CORPUS = Corpus("toy", LABELS, (*TRAIN, BARE))


@pytest.fixture
def file(write: Write) -> Path:
    """One JSONL file of 20 dialogues beside its label set."""
    write("mine/labels.json", '["anger", "joy"]')
    rows = []
    for c in TRAIN:
        turns = [{"speaker": t.speaker, "text": t.text, "labels": [*t.labels]} for t in c.turns]
        rows.append({"id": c.dialogue_id, "turns": turns})
    return write("mine/my own.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def config_for(file: Path, *more: str) -> RunConfig:
    return load_config(None, [f"corpus.path={file}", *more])


def ids(corpus: Corpus, split: str) -> set[str]:
    return {c.dialogue_id for c in corpus.split(split)}


def test_the_draw_is_the_seeds_and_takes_whole_labelled_dialogues() -> None:
    drawn = draw_dev(CORPUS, 0.25, 1)
    assert len(ids(drawn, "dev")) == 5
    assert ids(drawn, "dev") | ids(drawn, "train") == ids(CORPUS, "train")
    assert "bare" in ids(drawn, "train"), "nothing could be scored on it"
    assert [c.turns for c in drawn.conversations] == [c.turns for c in CORPUS.conversations]
    turned = Corpus("toy", LABELS, CORPUS.conversations[::-1])
    assert ids(draw_dev(turned, 0.25, 1), "dev") == ids(drawn, "dev"), "not by the order of the file"
    assert ids(draw_dev(CORPUS, 0.25, 2), "dev") != ids(drawn, "dev")
    assert ids(draw_dev(CORPUS, 0.5, 1), "dev") > ids(drawn, "dev")
    assert draw_dev(CORPUS, 0, 1) is CORPUS
    hidden = {c.dialogue_id for c in hide_labels(CORPUS, 0.75, 1).split("train") if not c.is_labelled}
    assert hidden - {"bare"} != ids(drawn, "dev"), "a draw of its own"


def test_a_single_file_trains_with_a_share_and_is_refused_without(file: Path) -> None:
    with pytest.raises(UserError, match=r"corpus jsonl has no dev split .* set corpus.dev_share") as refused:
        load_run_corpus(config_for(file))
    assert "\n" not in str(refused.value)
    assert any(
        "no dev split" in odd and "corpus.dev_share" in odd for odd in check_corpus(str(file)).oddities
    )
    corpus = load_run_corpus(config_for(file, "corpus.dev_share=0.2", "corpus.labelled_share=0.5"))
    assert [len(corpus.split(split)) for split in ("train", "dev", "test")] == [16, 4, 0]
    assert all(c.is_labelled for c in corpus.split("dev")), "drawn before labels are hidden"
    assert sum(c.is_labelled for c in corpus.split("train")) == 8


def test_a_text_of_the_drawn_split_is_kept_out_of_what_is_added(file: Path, write: Write) -> None:
    corpus = load_run_corpus(config_for(file, "corpus.dev_share=0.2"))
    long = "This is a line that is long enough to tell a scene"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[[row["id"] for row in rows].index(corpus.split("dev")[0].dialogue_id)]["turns"][0]["text"] = long
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare = (("same", long), ("new", "Hm"))
    extra = [{"id": name, "turns": [{"speaker": "A", "text": text}]} for name, text in bare]
    more = write("more.jsonl", "".join(json.dumps(row) + "\n" for row in extra))
    added = load_run_corpus(config_for(file, "corpus.dev_share=0.2", f"corpus.unlabelled={more}"))
    assert ids(added, "train") - ids(corpus, "train") == {"new"}


def test_an_evaluation_scores_the_split_that_the_run_drew(file: Path) -> None:
    config = config_for(file, "corpus.dev_share=0.2", "seed=7")
    model = FinishedModel(file.parent, architecture_by_name("qwen3-0.6b"), config, "config.yaml")
    corpus, place = read_corpus_of("", model)
    assert place == file
    assert corpus.split("dev") == load_run_corpus(config).split("dev") != ()
    assert read_corpus_of(str(file), model)[0].split("dev") == (), "a named corpus is read as it is"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.dev_share=0.01"], "corpus.dev_share=0.01 draws 0 of the 20 labelled training dialogues"),
        (["corpus.dev_share=1"], "corpus.dev_share=1.0 draws 20 of the 20"),
        (["corpus.dev_share=-1"], "corpus.dev_share=-1: input should be greater"),
        (["corpus.dev_share=0.1", "evaluation.split=test"], "its test split holds no labelled turn"),
    ],
)
def test_a_share_that_cannot_be_drawn_is_one_line(file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_run_corpus(config_for(file, *overrides))
    assert "\n" not in str(refused.value)


def test_a_published_dev_split_is_not_replaced() -> None:
    with pytest.raises(UserError, match=r"corpus.dev_share=0.1, but everyday has a dev split of 40"):
        load_run_corpus(load_config(None, ["corpus.name=everyday", "corpus.dev_share=0.1"]))
