"""Test what a finished run tells: figures with intervals, turns as each stage read them, a dialogue."""

from __future__ import annotations

import json

import pytest

from selfemo.evaluation.intervals import bootstrap, paired_bootstrap
from selfemo.evaluation.metrics import NO_ANSWER
from selfemo.evaluation.turns import evaluation_turns
from selfemo.run.outcome import (
    dialogue_lines,
    figure_rows,
    primary,
    turn_lines,
    verdict,
    with_intervals,
)
from tests.helpers.scripted import conversation

SEED = 3
TURNS = evaluation_turns(
    [
        conversation(str(i), f"Ann[{label}]: line {i}\x1b[2J", f"Bo[neutral]: answer {i}", split="dev")
        for i, label in enumerate(["joy", "anger", "sadness", "joy", "anger", "sadness"])
    ]
)
GOLD = [turn.gold[0] for turn in TURNS]
DIALOGUES = [turn.dialogue for turn in TURNS]
ALL_NEUTRAL, RIGHT = ["neutral"] * len(TURNS), GOLD


def test_every_stage_has_the_intervals_of_its_own_answers_and_self_play_a_paired_one():
    found = with_intervals({"majority": ALL_NEUTRAL, "sft": ALL_NEUTRAL, "final": RIGHT}, TURNS, SEED)
    assert found["sft"] == bootstrap(GOLD, ALL_NEUTRAL, DIALOGUES, SEED)
    assert found["by self-play"] == paired_bootstrap(GOLD, RIGHT, ALL_NEUTRAL, DIALOGUES, SEED)
    rows = {name: cells for name, *cells in figure_rows(found)}
    assert list(rows) == ["majority class", "SFT", "after self-play", "by self-play"]
    assert rows["SFT"][0] == "0.500 [0.50, 0.50]"
    assert rows["by self-play"][0] == "+0.500 [+0.50, +0.50]"


@pytest.mark.parametrize(
    ("final", "told"),
    [(RIGHT, "accuracy +0.500 and weighted f1 +"), (ALL_NEUTRAL, "no difference"), (None, "")],
)
def test_a_gain_is_claimed_only_where_its_interval_excludes_zero(final, told):
    predicted = {"sft": ALL_NEUTRAL} | ({"final": final} if final else {})
    said = verdict(with_intervals(predicted, TURNS, SEED))
    assert told in said
    assert bool(said) == bool(told)


def test_a_loss_is_told_as_one():
    assert "accuracy -0.500" in verdict(with_intervals({"sft": RIGHT, "final": ALL_NEUTRAL}, TURNS, SEED))


def test_a_turn_stands_with_the_answer_that_each_stage_gave_to_it():
    """Each stage's answer names its turn: an answer beside another turn's words would show."""
    readings = {
        "start": [[] for _ in TURNS],
        "sft": [[f"label{i}", "joy"] for i in range(len(TURNS))],
    }
    lines = list(turn_lines(TURNS, readings))
    assert len(lines) == 2 * 5
    places = [int(line.split("label")[1].split(",")[0]) for line in lines[1::2]]
    assert places == sorted(set(places))
    for place, words, read in zip(places, lines[::2], lines[1::2], strict=True):
        turn = TURNS[place].context[-1]
        assert words.strip().startswith(f"{turn.speaker}: {turn.text[:6]}")
        assert read.strip() == f"annotated {turn.labels[0]}; start nothing; SFT label{place}, joy"
    assert not any("\x1b" in line for line in lines)
    assert len(list(turn_lines(TURNS[:2], {}))) == 2 * 2


def test_an_answer_outside_the_grammar_is_no_label():
    assert primary([["joy", "anger"], []]) == ["joy", NO_ANSWER]


def _record(iteration, *replies):
    dialogue = [{"speaker": "Ann", "text": "It is late.", "labels": []}]
    groups, sample = [], {"score": 1.0, "rewards": {}, "failed_gates": []}
    group = {"speaker": "Bo", "gold": [], "target": [], "consensus": [], "agreement": 1.0}
    for turn, (text, read) in enumerate(replies):
        dialogue.append({"speaker": "Bo", "text": text, "labels": []})
        other = sample | {"text": "Not this one.", "read": ["anger"]}
        candidates = [other, sample | {"text": text.replace(" ", "\n", 1), "read": read}]
        groups += [
            group | {"role": "recognizer", "turn": turn, "candidates": [other]},
            group | {"role": "responder", "turn": turn, "target": ["joy"], "candidates": candidates},
        ]
    place = {"iteration": iteration, "source": "toy/train/0", "seed_turns": 1}
    return place | {"dialogue": dialogue, "groups": groups}


def test_the_newest_dialogue_with_a_generated_line_is_shown_with_aim_and_reading(tmp_path):
    path = tmp_path / "samples.jsonl"
    assert list(dialogue_lines(path)) == []
    records = [_record(0, ("Old words.", ["joy"])), _record(1, ("New words.", ["joy"]), ("Last.", []))]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in [*records, _record(2)]))
    damaged = (b"{broken", b"\xff", b"[]", b'{"dialogue": [], "groups": []}')
    path.write_bytes(path.read_bytes() + b"".join(line + b"\n" for line in damaged))
    assert list(dialogue_lines(path)) == [
        "a dialogue of self-play (iteration 1); the model wrote the lines with >",
        "    Ann: It is late.",
        "  > Bo: New words.   (asked for joy; read as joy)",
        "  > Bo: Last.   (asked for joy; read as nothing)",
    ]
