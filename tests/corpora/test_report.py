"""Test the corpus report and its commands.

Baselines agree with scikit-learn and with published values, checks collect every problem, and
overlap follows its definition.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from typer.testing import CliRunner

from selfemo.commands.corpus import app
from selfemo.common.errors import UserError
from selfemo.corpora.check import check_corpus
from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.imports.goemotions import EMOTIONS
from selfemo.corpora.overlap import (
    HeldOutTexts,
    held_out_texts,
    hold_out,
    measure_overlap,
    overlap_key,
    texts_of,
)
from selfemo.corpora.registry import load_corpus, load_training_corpus
from selfemo.corpora.stats import corpus_stats, majority_baseline, transition_shares, write_plot

Write = Callable[[str, str | bytes], Path]
LONG = "We were on a break, and everybody knows it!"


def _line(name: str, *turns: tuple[str, list[str]]) -> str:
    return (
        json.dumps(
            {
                "id": name,
                "turns": [{"speaker": "Ana", "text": text, "labels": labels} for text, labels in turns],
            }
        )
        + "\n"
    )


@pytest.fixture
def corpus_dir(write: Write) -> Path:
    train = _line("a", ("Hi", ["joy"]), ("So", ["neutral"]), (LONG, ["neutral", "joy"])) + _line(
        "b", ("Oh", []), ("No", ["anger"])
    )
    write("c/train.jsonl", train)
    write("c/dev.jsonl", _line("a", ("WE were on a break and everybody knows it", ["joy"])))
    write("c/test.jsonl", _line("a", ("Hi", ["joy"]), ("Hi", ["neutral"])))
    return write("c/labels.json", '["joy", "neutral", "anger"]').parent


@given(st.lists(st.integers(0, 40), min_size=2, max_size=8).filter(any))
def test_majority_scores_equal_scikit_learn(counts: list[int]) -> None:
    by_label = {f"label{i}": count for i, count in enumerate(counts)}
    gold = [label for label, count in by_label.items() for _ in range(count)]
    scores = majority_baseline("label1", by_label)
    answers = ["label1"] * len(gold)
    assert scores.accuracy == pytest.approx(accuracy_score(gold, answers))
    assert scores.weighted_f1 == pytest.approx(
        f1_score(gold, answers, average="weighted", labels=list(by_label), zero_division=0)
    )
    assert scores.macro_f1 == pytest.approx(
        f1_score(gold, answers, average="macro", labels=list(by_label), zero_division=0)
    )


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("meld", 2, (0.4812, 0.3127, 0.0928)),
        ("meld", 1, (0.4238, 0.2523, 0.0850)),
        ("emorynlp", 2, (0.2628, 0.1094, 0.0595)),
    ],
)
def test_published_majority_baselines(
    data_root: Path, name: str, split: int, expected: tuple[float, ...]
) -> None:
    majority = check_corpus(str(data_root / name)).splits[split].majority
    assert majority.label == "neutral"
    assert (
        round(majority.accuracy, 4),
        round(majority.weighted_f1, 4),
        round(majority.macro_f1, 4),
    ) == expected


def test_stats_and_transitions(corpus_dir: Path) -> None:
    corpus = load_corpus("jsonl", corpus_dir)
    train, _, test = corpus_stats(corpus)
    assert (train.dialogues, train.turns, train.labelled_turns, train.multi_label_turns) == (2, 5, 4, 1)
    assert train.label_counts == (("anger", 1), ("joy", 1), ("neutral", 2))
    assert test.majority.label == "neutral"  # train's most frequent label, though labels tie in test
    assert test.majority.accuracy == 0.5
    # joy -> neutral and neutral -> neutral; the unlabelled turn before "anger" starts no transition
    assert transition_shares(corpus.split("train"), corpus.labels) == [[0, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_check_collects_every_problem(corpus_dir: Path) -> None:
    with (corpus_dir / "train.jsonl").open("a") as file:
        file.write("{\n" + _line("c", ("Hi", ["joi"]), ("Well", ["joy"])))
    (corpus_dir / "test.jsonl").unlink()
    report = check_corpus(str(corpus_dir))
    assert [(problem.path.name, problem.line) for problem in report.problems] == [
        ("train.jsonl", 3),
        ("train.jsonl", 4),
    ]
    assert "no test split" in report.oddities
    assert [s.split for s in report.splits] == ["train", "dev"]
    assert report.splits[0].turns == 6
    assert dict(report.shared_with_train)["dev"].shared == 1


def test_the_bundled_corpus_has_no_problem() -> None:
    report = check_corpus("everyday")
    assert report.problems == ()
    assert len(report.labels) == 7
    assert sum(s.dialogues for s in report.splits) >= 240
    assert [overlap.shared for _, overlap in report.shared_with_train] == [0, 0]
    assert sum(s.multi_label_turns for s in report.splits) > 0


def test_overlap_keys_ignore_case_accents_and_punctuation() -> None:
    assert overlap_key("  Fiancé's\u2014 DON'T 2!") == "fiancesdont2"
    held_out = HeldOutTexts([LONG, "Oh my God!"])
    assert held_out.matches("we were on a break... and EVERYBODY knows it")
    assert not held_out.matches("Oh my God!")  # too short to be held out: such a text occurs in every split
    assert not held_out.matches(LONG + " Really.")


def test_overlap_keys_keep_marks_that_are_letters() -> None:
    for one, other in (("की", "के"), ("กิน", "กัน"), ("が", "か"), ("مُ", "مِ")):
        assert overlap_key(one) != overlap_key(other), "marks of these scripts are vowels and voices"
    assert overlap_key("می\u200cخواهم") == overlap_key("میخواهم")
    assert overlap_key("ＡＢＣ１") == "abc1"
    line = "我们昨天晚上在公园里等了你很久"
    assert HeldOutTexts([line]).matches(line + "！"), "15 ideographs say more than 25 Latin letters"
    assert not HeldOutTexts(["我不知道你在说什么"]).matches("我不知道你在说什么")


def test_a_barred_turn_equals_any_held_out_text_or_shows_a_long_one() -> None:
    held_out = HeldOutTexts([LONG, "What?"])
    assert held_out.bars("we were on a break... and EVERYBODY knows it")
    assert held_out.bars("WHAT")
    assert held_out.bars("fine", (Turn("A", LONG.upper()), Turn("B", "Hm")))
    assert not held_out.bars("fine", (Turn("A", "what"),))
    assert not held_out.bars("We were on a break")


def test_dialogues_with_a_held_out_text_are_dropped_whole() -> None:
    planted = Conversation("x", "train", "1", (Turn("A", "Hi"), Turn("B", LONG.upper())))
    clean = Conversation("x", "train", "2", (Turn("A", "Hi"), Turn("B", "Hello")))
    test = Conversation("x", "test", "3", (Turn("A", "Hello"), Turn("B", LONG)))
    corpus = Corpus("x", ("joy", "sadness"), (planted, clean, test))
    assert held_out_texts(corpus) == ["Hello", LONG]
    assert hold_out(Corpus("y", ("joy", "sadness"), (planted, clean)), [corpus]).conversations == (clean,)


def test_other_corpora_are_held_out_of_the_training_split_alone() -> None:
    planted = Conversation("x", "train", "1", (Turn("A", "Hi"), Turn("B", LONG)))
    clean = Conversation("x", "train", "2", (Turn("A", "Hi"), Turn("B", "Hello")))
    dev = Conversation("x", "dev", "3", (Turn("B", LONG),))
    other = Corpus(
        "y",
        ("mad",),
        tuple(
            Conversation("y", split, "1", (Turn("C", text),))
            for split, text in (("train", "Hi"), ("test", LONG))
        ),
    )
    left = hold_out(Corpus("x", ("joy",), (planted, clean, dev)), [other])
    assert left.conversations == (clean, dev), "what is reported stays whole"
    assert left.barred_texts == (LONG,), "self-play may not come upon it later either"
    assert held_out_texts(left) == [LONG, LONG]


def test_a_run_trains_on_what_it_does_not_share_with_the_held_out_corpus(corpus_dir: Path) -> None:
    everyday = load_corpus("everyday")
    train_path = corpus_dir / "train.jsonl"
    shared = next(
        turn.text for c in everyday.split("test") for turn in c.turns if len(overlap_key(turn.text)) >= 25
    )
    row = {"id": "planted", "turns": [{"speaker": "A", "text": shared.upper(), "labels": ["joy"]}]}
    train_path.write_text(train_path.read_text() + json.dumps(row) + "\n")
    ids = [
        [c.dialogue_id for c in load_training_corpus("jsonl", str(corpus_dir), others).split("train")]
        for others in ("", " everyday,")
    ]
    assert [name for name in ids[0] if name not in ids[1]] == ["planted"]
    with pytest.raises(UserError, match=r"'everyda' is neither a path nor a corpus.*did you mean 'everyday'"):
        load_training_corpus("jsonl", str(corpus_dir), "everyda")
    train_path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"corpus.hold_out=everyday: every training dialogue of jsonl"):
        load_training_corpus("jsonl", str(corpus_dir), "everyday")


def test_a_corpus_is_held_out_of_itself(corpus_dir: Path) -> None:
    """Name the trained corpus in hold_out: a training dialogue that repeats its own dev split goes."""
    before, after = (load_training_corpus("jsonl", str(corpus_dir), held) for held in ("", str(corpus_dir)))
    assert [c.dialogue_id for c in before.split("train")] == ["a", "b"]
    assert [c.dialogue_id for c in after.split("train")] == ["b"]


def test_the_stated_overlap_of_the_friends_corpora(data_root: Path) -> None:
    meld = texts_of(load_corpus("meld", data_root=data_root).split("test"))
    emorynlp = load_corpus("emorynlp", data_root=data_root).split("train")
    found = measure_overlap(meld, texts_of(emorynlp))
    assert (found.long_texts, found.shared) == (1329, 263)
    held_out = HeldOutTexts(meld)
    kept = [conversation for conversation in emorynlp if not held_out.matches_any(conversation)]
    assert 0 < len(kept) < len(emorynlp)
    assert measure_overlap(meld, texts_of(kept)).shared == 0


def test_plot_is_written_whole(corpus_dir: Path, tmp_path: Path) -> None:
    write_plot(load_corpus("jsonl", corpus_dir), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.glob("*p*.png")] == ["p.png"]


def test_check_command(corpus_dir: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(corpus_dir), "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    assert "no problems" in result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["splits"][0]["label_counts"] == {"anger": 1, "joy": 1, "neutral": 2}
    assert report["shared_with_train"]["dev"] == {"long_texts": 1, "shared": 1}

    (corpus_dir / "dev.jsonl").write_text("[]\n7\n")
    result = CliRunner().invoke(app, ["check", str(corpus_dir), "--limit", "1"])
    assert f"{corpus_dir}/dev.jsonl:1: dialogue is []" in result.output
    assert "and 1 more" in result.output
    assert isinstance(result.exception, UserError)


def test_stats_and_overlap_commands(corpus_dir: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["stats", str(corpus_dir), "--plot", str(tmp_path / "p.svg")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    result = CliRunner().invoke(app, ["overlap", str(corpus_dir), str(corpus_dir)])
    assert "100.0" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "mled"], "neither a path nor a corpus, .*did you mean 'meld'"),
        (["stats", "everyday", "--plot", "p.txt"], "expected a .png, .svg or .pdf"),
        (
            ["stats", "everyday", "--plot", "taken.png"],
            r"--plot taken\.png: expected a file in an existing directory",
        ),
        (
            ["check", "everyday", "--json", "nowhere/r.json"],
            "--json nowhere/r.json: expected a file in an existing directory: create",
        ),
        (["check", "everyday", "--json", "taken.png"], r"--json taken\.png: expected a file"),
        (["check", "everyday", "--json", "/proc/r.json"], r"--json /proc/r\.json: cannot be written"),
        (["stats", "everyday", "--plot", "/proc/p.svg"], r"--plot /proc/p\.svg: cannot be written"),
        (["check", "nowhere", "--format", "jsonl"], "nowhere: does not exist"),
    ],
)
def test_commands_refuse_with_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"], "nothing half written"
    with pytest.raises(UserError, match=message):
        raise result.exception


def test_transitions_of_a_wide_label_set_are_printed_whole(write: Write) -> None:
    """28 columns of figures do not fit into 80 of a terminal, which would print … in their place."""
    turns = [{"speaker": "AB"[i % 2], "text": f"line {i}", "labels": [EMOTIONS[i % 28]]} for i in range(56)]
    write("wide/labels.json", json.dumps(EMOTIONS))
    path = write("wide/train.jsonl", json.dumps({"id": "d", "turns": turns}) + "\n")
    result = CliRunner().invoke(app, ["stats", str(path)])
    assert result.exit_code == 0, result.output
    assert "…" not in result.output
    assert result.output.count(" 100 ") == 28, "each label is followed by the next"
