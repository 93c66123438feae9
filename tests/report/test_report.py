"""Test the content of the report: changes credited to their stage, groups under their turns, plans
beside measurements.
"""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.records.reading import RunRecords, read_run
from selfemo.report.charts import SERIES, line_chart
from selfemo.report.dialogues import dialogue_views
from selfemo.report.emotions import confusions, label_rows
from selfemo.report.flywheel import flywheel_view, generations, longest_chains
from selfemo.report.formats import is_hued
from selfemo.report.headlines import headlines, run_facts
from selfemo.report.page import render
from selfemo.report.planned import planned_rows
from selfemo.report.timeline import coarse_spans, time_line
from tests.helpers.label_sets import EVERY_CORPUS
from tests.helpers.made_run import CONFIG, HOSTILE, PLAY, SPEAKER, make_run
from tests.helpers.scripted import LABELS


class Page(HTMLParser):
    """Elements, ids, references and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page(render(read_run(finished)))


def test_a_change_is_credited_to_the_stage_that_made_it(finished: Path):
    """Credit 0.5 to SFT and -0.02 to SELF-GRPO, where accuracy gains 0.48 from start to end."""
    accuracy = next(h for h in headlines(read_run(finished)) if h.name == "Accuracy")
    assert accuracy.values == (0.0, 0.5, 0.48)
    assert (accuracy.by_sft, accuracy.by_play) == (pytest.approx(0.5), pytest.approx(-0.02))
    assert accuracy.verdict(accuracy.by_sft) == "better"
    assert accuracy.verdict(accuracy.by_play) == "noise"  # 2 of 100 turns
    assert accuracy.majority == 0.4


def test_the_page_counts_training_dialogues_with_labels_and_without(page: Page, finished: Path):
    assert "20 dialogues with labels (60 turns), 0 without (0 turns)" in page.text
    older = replace(read_run(finished), training_dialogues=None)
    assert "dialogues with labels" not in render(older), "a run from before they were recorded"


def test_fewer_format_failures_are_better(finished: Path):
    failures = next(h for h in headlines(read_run(finished)) if h.name == "Format failures")
    assert failures.by_sft == pytest.approx(-1.0)
    assert failures.verdict(failures.by_sft) == "better"


def test_a_change_without_an_interval_gets_no_verdict(finished: Path):
    f1 = next(h for h in headlines(read_run(finished)) if h.name == "Weighted F1")
    assert f1.margin is None
    assert f1.verdict(f1.by_sft) == ""


def test_a_live_run_credits_nothing_to_a_stage_that_has_not_ended(live: Path):
    accuracy = headlines(read_run(live))[0]
    assert (accuracy.values, accuracy.by_sft, accuracy.by_play, accuracy.last) == (
        (0.0, 0.5, None),
        0.5,
        None,
        0.5,
    )


def test_facts_compare_the_first_third_with_the_last(finished: Path):
    facts = {fact.name: fact.value for fact in run_facts(read_run(finished))}
    assert facts["Self-play reward"] == "0.500 → 0.900"


def test_whatever_was_written_stays_text(page: Page):
    assert HOSTILE in page.text
    assert SPEAKER in page.text
    assert "<i>run&" in page.text
    assert page.tags.count("script") == 1
    assert not {"img", "iframe", "b", "i"} & set(page.tags)
    assert page.handlers == []


def test_the_page_refers_to_nothing_outside(page: Page):
    outside = [r for r in page.references if not r.startswith(("#", "data:,"))]
    assert outside == []
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)


def test_ids_of_many_charts_do_not_collide(page: Page):
    assert len(page.ids) == len(set(page.ids)) > 100


def test_a_charts_colours_are_the_pages(page: Page):
    svg = line_chart("Two lines", [0, 1], {"a": [1.0, 2.0], "b": [2.0, 3.0]}).svg
    assert "var(--c0)" in svg
    assert "var(--c1)" in svg
    assert not any(colour in svg for colour in SERIES)


def test_every_label_and_confusion_is_shown(finished: Path):
    records = read_run(finished)
    assert [(row.label, row.support) for row in label_rows(records)] == list(zip(LABELS, (40, 30, 20, 10)))
    start, _, final = confusions(records)
    assert [cell.count for cell in start.rows[0][1]] == [0, 0, 0, 0, 40]
    assert final.rows[0][1][0].correct
    assert final.rows[0][1][0].share == pytest.approx(19 / 40)


def test_spans_of_all_records_stand_on_one_axis(finished: Path):
    line = time_line(read_run(finished))
    sums = {row.phase: row for row in line.sums}
    assert line.ranks == 2
    assert line.total_s == 950.0
    assert sums["train"].spans == 5
    # Rank 1 is a second late every time.
    assert (sums["train"].least_s, sums["train"].most_s) == (
        5 * 24.0,
        5 * 25.0,
    )
    assert sums["train"].share == pytest.approx(125 / 950)
    assert [chart.title for chart in line.charts] == ["Whole run", "Last 2 iterations"]


def test_a_long_run_is_drawn_in_columns_that_take_their_longest_phase():
    """Draw 10 columns of 10 s.

    Each has 6 s of rollout, 3 s of train, 1 s pause; then two columns of save; then nothing.
    """
    spans = [
        span
        for i in range(5)
        for span in (("rollout", 10 * i, 10 * i + 6.0), ("train", 10 * i + 6.0, 10 * i + 9.0))
    ]
    assert coarse_spans([*spans, ("save", 50.0, 70.0)], 0.0, 100.0, columns=10) == [
        ("rollout", 0.0, 50.0),
        ("save", 50.0, 70.0),
    ]


def test_planned_bytes_stand_beside_measured_ones(finished: Path, tmp_path: Path):
    rows = {row.name: row for row in planned_rows(read_run(finished))}
    assert all(rows[kind].is_met for kind in ("Weights", "Gradients", "Optimizer", "Reference"))
    assert rows["Weights"].note.startswith("on each of ranks 0, 1")
    assert not rows["Weight sync, received"].is_met  # the made run moved 123 bytes
    assert not any(name.startswith("Seconds") for name in rows)
    records = read_run(finished)
    other = RunRecords(
        records.root, records.config, tuple(_one_byte_off(e) for e in records.events), (), records.summary
    )
    assert [(row.is_met, row.note[:9]) for row in planned_rows(other) if row.name == "Optimizer"] == [
        (True, "on rank 0"),
        (False, "on rank 1"),
    ]


def test_seconds_are_planned_for_a_gpu_that_is_named(finished: Path):
    rows = {row.name: row for row in planned_rows(read_run(finished), "h100-80g")}
    assert rows["Seconds, train"].measured == 60.0
    assert 0 < rows["Seconds, train"].planned < 60.0
    assert rows["Samples trained"].measured == rows["Training samples"].measured / 2
    # Records of an older run.
    untold = tuple(
        {k: v for k, v in event.items() if k != "samples_trained"} for event in read_run(finished).events
    )
    older = {row.name: row for row in planned_rows(replace(read_run(finished), events=untold), "h100-80g")}
    assert "Samples trained" not in older
    assert rows["Seconds, train"].planned < older["Seconds, train"].planned
    with pytest.raises(UserError, match="h100-80g"):
        planned_rows(read_run(finished), "h1000")


def _one_byte_off(event: dict) -> dict:
    if event["event"] != "memory":
        return event
    return event | {
        "ranks": event["ranks"]
        | {"1": event["ranks"]["1"] | {"optimizer": event["ranks"]["1"]["optimizer"] + 1}}
    }


def test_lineage_counts_what_descends_from_kept_records(finished: Path):
    view = flywheel_view(read_run(finished))
    records = list(FlywheelStore(finished / "flywheel.sqlite").find(Filter()))
    assert view is not None
    assert view.offered == len(records) == sum(count for _, count, _ in view.generations)
    assert view.kept == sum(r.kept for r in records) == sum(kept for _, _, kept in view.generations)
    assert {d: n for d, n, _ in view.generations}[0] == sum(r.parent is None for r in records)
    assert view.sources == len({r.source for r in records if r.kept})
    for chain in view.chains:
        assert [r.parent for r in chain[1:]] == [r.record_id for r in chain[:-1]]
        assert chain[0].parent is None


def test_generations_and_chains_follow_parents():
    parents = {1: None, 2: 1, 3: 1, 4: 3, 5: None}
    assert generations(parents) == {1: 0, 2: 1, 3: 1, 4: 2, 5: 0}
    links = [
        (1, None, True, "a"),
        (2, 1, True, "a"),
        (3, 1, True, "a"),
        (4, 3, False, "a"),
        (5, None, True, "b"),
    ]
    assert longest_chains(links, generations(parents)) == [[1, 2]]  # 4 was dropped, 5 descends from no record
    for parent in (7, 6, 0):  # one that is not there, as without an engine's file, itself, and none
        with pytest.raises(UserError, match=f"record 6 descends from record {parent}, which no file"):
            generations(parents | {6: parent})


def test_groups_stand_under_the_turn_they_read_or_wrote(finished: Path):
    for record, view in zip(
        read_run(finished).dialogues, dialogue_views(read_run(finished).dialogues), strict=True
    ):
        seeds = record["seed_turns"]
        assert [t.generated for t in view.turns] == [i >= seeds for i in range(len(view.turns))]
        assert [g.role for g in view.turns[seeds - 1].groups] == ["recognizer"]
        for index, turn in enumerate(view.turns[seeds:]):
            chosen = [c for g in turn.groups if g.role == "responder" for c in g.candidates if c.chosen]
            assert [c.text for c in chosen] == [turn.text]
            assert (
                turn.groups[0].candidates[0].text == record["groups"][2 * index + 1]["candidates"][0]["text"]
            )


def test_the_view_of_each_sample_is_shown_and_plain_where_no_record_names_one(tmp_path: Path):
    shown = ("plain", "anonymous", "labels", "short")
    run = read_run(make_run(tmp_path / "run", config=replace(CONFIG, selfplay=replace(PLAY, views=shown))))
    (group,) = dialogue_views(run.dialogues, limit=1)[0].turns[run.dialogues[0]["seed_turns"] - 1].groups
    assert group.views == shown
    text = Page(render(run)).text
    assert "read by 4 samples in 4 views" in text
    old = json.loads(json.dumps(run.dialogues[0]))
    for candidate in (c for g in old["groups"] for c in g["candidates"]):
        del candidate["view"]
    assert {g.views for turn in dialogue_views([old])[0].turns for g in turn.groups} == {("plain",)}


def test_one_view_needs_no_column(page: Page):
    assert "in 1 views" not in page.text
    assert "anonymous" not in page.text


def test_replies_that_could_not_be_read_end_the_dialogue():
    candidate = {
        "text": "joy",
        "read": [],
        "failed_gates": ["leak"],
        "score": 0.0,
        "rewards": {"expression": 0.0},
    }
    group = {
        "role": "responder",
        "turn": 0,
        "speaker": "Bo",
        "gold": [],
        "target": ["joy"],
        "consensus": [],
        "agreement": 0.0,
    }
    turn = {"speaker": "Ann", "text": "so", "labels": []}
    record = {
        "iteration": 0,
        "source": "s",
        "seed_turns": 1,
        "dialogue": [turn],
        "groups": [group | {"candidates": [candidate]}],
    }
    (view,) = dialogue_views([record])
    assert view.unanswered is not None
    assert not any(c.chosen for c in view.unanswered.candidates)
    assert view.turns[0].groups == ()


def test_a_long_run_shows_dialogues_from_beginning_to_end():
    record = {"source": "s", "seed_turns": 0, "dialogue": [], "groups": []}
    views = dialogue_views([record | {"iteration": i} for i in range(1000)], limit=40)
    assert [views[0].iteration, views[-1].iteration, len({v.iteration for v in views})] == [0, 999, 40]


@pytest.mark.parametrize("labels", EVERY_CORPUS)
def test_every_emotion_of_the_supported_corpora_has_a_colour(labels: tuple[str, ...]) -> None:
    assert [label for label in labels if not is_hued(label)] == ["neutral"]
