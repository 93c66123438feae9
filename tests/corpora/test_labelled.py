"""Hidden labels, and dialogues that never had any: which, how many, and that no label is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.config.schema import SelfPlayConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.labelled import draw_labelled, hide_labels, label_counts
from selfemo.corpora.registry import load_corpus
from selfemo.corpora.unlabelled import add_unlabelled
from tests.helpers.hidden_labels import IDS, PLANTED, SEED, SHARE, config_for, shown_ids, write_corpus
from tests.helpers.scripted import LABELS, conversation

Write = Callable[[str, str | bytes], Path]
LONG = "We were on a break, and everybody knows it!"
TRAIN = [conversation(str(i), f"Ann[joy]: line {i}", f"Bo: answer {i}") for i in range(40)]


@given(st.integers(0, 2**40), st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_share_is_part_of_a_larger_one(seed: int, one: float, other: float) -> None:
    small, large = (draw_labelled(TRAIN, share, seed) for share in sorted((one, other)))
    assert small <= large
    assert abs(len(large) - max(one, other) * len(TRAIN)) <= 0.5


def test_the_draw_is_the_seeds_and_not_the_orders() -> None:
    drawn = draw_labelled(TRAIN, 0.25, 1)
    assert drawn == draw_labelled(TRAIN[::-1], 0.25, 1)
    assert drawn != draw_labelled(TRAIN, 0.25, 2)
    assert drawn != {c.key for c in TRAIN[:10]}, "not the head of the file"


def test_whole_dialogues_are_hidden_and_dev_and_test_keep_their_labels(tmp_path: Path) -> None:
    corpus = load_corpus("jsonl", write_corpus(tmp_path / "c"))
    hidden = hide_labels(corpus, SHARE, SEED)
    assert {c.dialogue_id for c in hidden.split("train") if c.is_labelled} == shown_ids()
    assert len(shown_ids()) == round(SHARE * len(IDS))
    for before, after in zip(corpus.conversations, hidden.conversations, strict=True):
        if after.is_labelled:
            assert before == after
        else:
            assert [(t.speaker, t.text) for t in before.turns] == [(t.speaker, t.text) for t in after.turns]
            assert all(turn.labels == () and turn.votes == () for turn in after.turns)
    for split in ("dev", "test"):
        assert hidden.split(split) == corpus.split(split) != ()
    assert hidden.revealed == ()


def test_the_loaded_corpus_does_not_depend_on_what_is_hidden(tmp_path: Path) -> None:
    """Whatever is computed from equal corpora is equal: no later part of a run can know a hidden label."""
    first, second = (write_corpus(tmp_path / label, label) for label in (PLANTED, "neutral"))
    corpora = [load_run_corpus(config_for(root)) for root in (first, second)]
    assert corpora[0] == corpora[1]
    assert PLANTED not in repr([c.turns for c in corpora[0].split("train")])
    seen = [load_run_corpus(config_for(root, labelled_share=1.0)) for root in (first, second)]
    assert seen[0] != seen[1], "the two files do differ"


def test_a_share_of_one_is_the_corpus_as_it_is() -> None:
    config = load_config(None, ["corpus.name=everyday"])
    assert load_run_corpus(config) == load_corpus("everyday")
    assert hide_labels(load_corpus("everyday"), 1.0, 1) == load_corpus("everyday")


def test_revealed_dialogues_stand_apart(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "c")
    plain, oracle = (load_run_corpus(config_for(root, reveal_hidden=reveal)) for reveal in (False, True))
    assert oracle.conversations == plain.conversations
    assert {c.dialogue_id for c in oracle.revealed} == {*IDS} - shown_ids()
    assert all(turn.labels == (PLANTED,) for c in oracle.revealed for turn in c.turns)


def test_both_kinds_are_counted() -> None:
    train = [
        conversation("1", "A[joy]: x", "B: y", "A[joy]: z"),
        conversation("2", "A: x", "B: y"),
        conversation("3", "A: x"),
        conversation("4", "A[joy]: x", split="dev"),
    ]
    counts = label_counts(Corpus("toy", LABELS, tuple(train)))
    assert (counts.labelled_dialogues, counts.labelled_turns) == (1, 2)
    assert (counts.unlabelled_dialogues, counts.unlabelled_turns) == (2, 3)
    assert str(counts) == "1 dialogues with labels (2 turns), 2 without (3 turns)"


def _file(*dialogues: tuple[str, list[dict]]) -> str:
    return "".join(json.dumps({"id": name, "turns": turns}) + "\n" for name, turns in dialogues)


def test_a_file_without_a_label_set_is_read_as_bare_text(write: Write) -> None:
    path = write(
        "chats/dev.jsonl",
        _file(
            ("a", [{"speaker": "Ana", "text": "Hi"}, {"speaker": "Ben", "text": "\u201cOh\u201d"}]),
            ("b", [{"speaker": "Ana", "text": "So", "labels": ["never heard of"], "votes": "many"}]),
        ),
    )
    corpus = Corpus("toy", LABELS, (TRAIN[0],))
    added = add_unlabelled(corpus, f" {path} ,")
    assert added.conversations == (
        TRAIN[0],
        Conversation("dev", "train", "a", (Turn("Ana", "Hi"), Turn("Ben", '"Oh"'))),
        Conversation("dev", "train", "b", (Turn("Ana", "So"),)),
    )
    write("more/train.jsonl", _file(("a", [{"speaker": "Ana", "text": "Well"}])))
    both = add_unlabelled(corpus, f"{path},{path.parents[1] / 'more'}")
    assert [c.key for c in both.conversations[-2:]] == ["dev/train/b", "more/train/a"]


def test_a_named_corpus_adds_its_training_split_without_labels() -> None:
    everyday = load_corpus("everyday")
    added = add_unlabelled(Corpus("toy", LABELS, (TRAIN[0],)), "everyday").conversations[1:]
    assert [c.key for c in added] == [c.key for c in everyday.split("train")]
    assert all(not turn.labels and not turn.votes for c in added for turn in c.turns)


def test_dialogues_that_share_a_scene_with_dev_or_test_are_left_out(write: Write) -> None:
    dev = conversation("h", f"A[joy]: {LONG}", split="dev")
    corpus = Corpus("toy", LABELS, (TRAIN[0], dev), barred_texts=("The copper kettle sings at noon, Mary!",))
    path = write(
        "more.jsonl",
        _file(
            ("dev", [{"speaker": "A", "text": "Hm"}, {"speaker": "B", "text": LONG.upper()}]),
            ("other", [{"speaker": "A", "text": "the copper kettle sings at noon mary"}]),
            ("free", [{"speaker": "A", "text": "Hm"}]),
        ),
    )
    assert [c.dialogue_id for c in add_unlabelled(corpus, str(path)).conversations] == ["0", "h", "free"]
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"corpus.unlabelled=.*: each of its 1 dialogues holds a dev or test"):
        add_unlabelled(corpus, str(path))


def test_a_dialogue_is_read_once() -> None:
    with pytest.raises(UserError, match=r"corpus.unlabelled=everyday: dialogue everyday/train/\S+ is in the"):
        add_unlabelled(load_corpus("everyday"), "everyday")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.labelled_share=1.5"], "corpus.labelled_share=1.5: input should be less than or equal to 1"),
        (["corpus.labelled_share=0"], "corpus.labelled_share=0 leaves no labelled turn"),
        (["corpus.labelled_share=0.001"], "corpus.labelled_share=0.001 leaves no labelled turn: .* 224"),
        (["corpus.reveal_hidden=true"], "corpus.reveal_hidden=true has nothing to reveal"),
        (["corpus.unlabelled=mled"], "'mled' is neither a path nor a corpus, .*did you mean 'meld'"),
        (["corpus.unlabelled=nowhere.jsonl"], "'nowhere.jsonl' is neither a path nor a corpus"),
        (["selfplay.unlabelled_share=-0.1"], "selfplay.unlabelled_share=-0.1: input should be greater"),
        (["selfplay.unlabelled_share=0.5"], "selfplay.unlabelled_share=0.5, but every training dialogue of"),
    ],
)
def test_what_cannot_work_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_run_corpus(load_config(None, ["corpus.name=everyday", *overrides]))
    assert "\n" not in str(refused.value)


def test_a_corpus_without_a_label_is_refused(write: Write) -> None:
    for split in ("train", "dev", "test"):
        write(f"c/{split}.jsonl", _file((split, [{"speaker": "A", "text": f"line of {split}"}])))
    path = write("c/labels.json", '["joy", "anger"]').parent
    config = load_config(None, ["corpus.name=jsonl", f"corpus.path={path}"])
    assert config.selfplay == SelfPlayConfig()
    with pytest.raises(UserError, match="corpus jsonl: the training split holds no labelled turn"):
        load_run_corpus(config)
