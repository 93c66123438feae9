"""Test the flywheel of a run: provenance, openings, resume, agreement of ranks; replay, export and the
commands.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.commands.flywheel import app
from selfemo.common.errors import UserError
from selfemo.config.schema import FlywheelConfig, RewardConfig, SelfPlayConfig
from selfemo.corpora.check import check_corpus
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.registry import load_corpus
from selfemo.emotions.labels import check_label_set
from selfemo.flywheel.export import export_jsonl
from selfemo.flywheel.flywheel import Flywheel, make_record
from selfemo.flywheel.replay import replay
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.rewards.scoring import Rewards, ScoredGroup, score_group
from selfemo.rollout.api import GenerationRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.transitions import TransitionPrior
from tests.helpers.groups import SCORE, recognizer_group
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator, conversation

TRAIN = [
    conversation(
        str(i),
        f"Ann[joy]: train number {i} starts off so",
        f"Bo[{label}]: train number {i} goes on so",
        f"Ann[joy]: end of {i}",
    )
    for i, label in enumerate(LABELS * 5)
]
HELD = [
    conversation("d", "Ann[joy]: the copper kettle sings at noon", split="dev"),
    conversation("t", "Bo[joy]: a planted line of the test split", split="test"),
]
CORPUS = Corpus("toy", LABELS, (*TRAIN, *HELD))
CONFIG = SelfPlayConfig(
    seeds_per_iteration=6,
    turns=2,
    recognizer_group_size=4,
    responder_group_size=2,
    max_answer_tokens=20,
    max_utterance_tokens=80,
)


def speak(prompt: str, request: GenerationRequest) -> str:
    """Answer mostly joy, with some disagreement.

    Replies vary with their seed and sometimes repeat a held-out line.
    """
    if prompt.startswith("Write"):
        if request.seed % 7 == 0:
            return "The copper kettle sings at noon!"
        return f"word{request.seed % 1009} word{request.seed % 1013} grand word{request.seed % 997}"
    return "joy" if request.temperature == 0 or request.seed % 6 else "anger"


class Run:
    """Connect the parts of a run as the trainer does."""

    def __init__(
        self,
        path: Path,
        config: FlywheelConfig | None = None,
        is_writer: bool = True,
        views: tuple[str, ...] = ("plain",),
    ) -> None:
        self.generator = ScriptedGenerator(speak)
        self.rewards = Rewards(RewardConfig(), TRAIN, LABELS)
        self.pool = OpeningPool(CORPUS, CONFIG, 5, 3)
        prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
        play, transitions = replace(CONFIG, views=views), TransitionPrior.estimate(TRAIN)
        self.selfplay = SelfPlay(self.generator, prompts, self.rewards.score, transitions, play, 5)
        self.flywheel = Flywheel(config or FlywheelConfig(), CORPUS, self.rewards, path, is_writer)

    def play(self, iteration: int) -> list[ScoredGroup]:
        episodes = self.selfplay.play(
            self.pool.draw(iteration, self.flywheel.kept_dialogues(iteration)), iteration
        )
        return self.rewards.score_groups([group for episode in episodes for group in episode.groups])

    def iterate(self, iterations: range) -> None:
        for iteration in iterations:
            self.flywheel.offer(self.play(iteration), weight_version=iteration + 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flywheel.sqlite"


def test_every_group_is_recorded_with_its_provenance(path: Path) -> None:
    run = Run(path)
    groups = run.play(0)
    records = run.flywheel.offer(groups, weight_version=3)
    assert run.flywheel.counts.offered == len(records) == len(groups)
    assert {r.reason for r in records} >= {"annotated", "self-generated", "expression", "low score"}
    for record, scored in zip(records, groups, strict=True):
        assert record.weight_version == 3
        assert record.prompt_ids == scored.group.samples[0].prompt_ids
        assert [c.rewards for c in record.candidates] == list(scored.rewards)
        assert [c.text for c in record.candidates] == [s.text for s in scored.group.samples]
    assert list(FlywheelStore(path).find(Filter())) == records
    run.iterate(range(1, 2))  # a call of its own: its records do not count among the first iteration's
    assert run.flywheel.outcomes(0) == Counter((r.kept, r.reason) for r in records)


def test_no_held_out_text_ever_enters_record_or_opening(path: Path) -> None:
    run = Run(path)
    run.iterate(range(12))
    kept = list(FlywheelStore(path).find(Filter(kept=True)))
    barred = list(FlywheelStore(path).find(Filter(reason="held-out text")))
    assert kept
    assert barred, "the planted line was offered"
    assert all("kettle" not in turn.text.lower() for record in kept for turn in record.dialogue)
    assert all(
        "kettle" not in turn.text.lower()
        for dialogue in run.flywheel.kept_dialogues()
        for turn in dialogue.turns
    )


def test_kept_texts_do_not_repeat_and_labels_keep_to_their_share(path: Path) -> None:
    run = Run(path)
    run.iterate(range(12))
    for role in ("recognizer", "responder"):
        kept = list(FlywheelStore(path).find(Filter(kept=True, role=role)))
        assert len({record.text for record in kept}) == len(kept)
    reasons = {t.reason for t in FlywheelStore(path).totals()}
    assert {"near duplicate", "label cap"} <= reasons


@pytest.mark.parametrize("limit", [1, 4, 7])
def test_of_more_candidates_than_are_compared_so_many_are_taken_evenly(path: Path, limit: int) -> None:
    run = Run(path, FlywheelConfig(candidates_per_iteration=limit))
    run.iterate(range(1))
    records = list(FlywheelStore(path).find(Filter()))
    decided = ("annotated", "self-generated", "expression", "near duplicate", "label cap")
    passed = [record.reason in decided for record in records if record.reason in (*decided, "not considered")]
    assert sum(passed) == limit < len(passed)
    for end in range(len(passed) + 1):
        assert sum(passed[:end]) == end * limit // len(passed)


def test_openings_continue_kept_records_and_say_so(path: Path) -> None:
    run = Run(path)
    run.iterate(range(3))
    openings = run.pool.draw(3, run.flywheel.kept_dialogues(3))
    continued = [opening for opening in openings if opening.parent is not None]
    assert len(continued) == 3
    for opening in continued:
        record = FlywheelStore(path).read(opening.parent or 0)
        assert opening.turns[-1].text == record.text
        assert opening.turns[-1].labels == record.labels
        assert opening.source == record.source
    assert any(r.parent is not None for r in run.flywheel.offer(run.play(3), 4))


def test_untrusted_labels_do_not_count_as_annotation(path: Path) -> None:
    run = Run(path, FlywheelConfig(trust_labels=False))
    run.iterate(range(2))
    assert run.flywheel.kept_dialogues()
    assert all(dialogue.turns[-1].labels == () for dialogue in run.flywheel.kept_dialogues())


def test_every_rank_decides_alike_and_one_writes(path: Path, tmp_path: Path) -> None:
    writer, reader = Run(path), Run(tmp_path / "absent.sqlite", is_writer=False)
    for iteration in range(3):
        assert writer.flywheel.offer(writer.play(iteration), 1) == reader.flywheel.offer(
            reader.play(iteration), 1
        )
        assert writer.flywheel.kept_dialogues() == reader.flywheel.kept_dialogues()
    assert not (tmp_path / "absent.sqlite").exists()


@pytest.mark.parametrize("is_writer", [True, False])
def test_a_resumed_flywheel_goes_on_as_if_it_had_not_stopped(
    path: Path, tmp_path: Path, is_writer: bool
) -> None:
    whole, first = Run(tmp_path / "whole.sqlite"), Run(path)
    whole.iterate(range(6))
    first.iterate(range(4))
    first.flywheel.close()
    second = Run(path, is_writer=is_writer)
    second.iterate(range(2, 6))  # iterations 2 and 3 were recorded before the stop
    assert second.flywheel.counts == whole.flywheel.counts
    assert second.flywheel.kept_dialogues() == whole.flywheel.kept_dialogues()
    if is_writer:
        assert list(FlywheelStore(path).find(Filter())) == list(
            FlywheelStore(tmp_path / "whole.sqlite").find(Filter())
        )
        assert [second.flywheel.outcomes(i) for i in range(6)] == [
            whole.flywheel.outcomes(i) for i in range(6)
        ]


def test_a_disabled_flywheel_keeps_nothing(path: Path) -> None:
    run = Run(path, FlywheelConfig(enabled=False))
    run.iterate(range(2))
    assert (run.flywheel.counts.offered, run.flywheel.counts.kept, run.flywheel.kept_dialogues()) == (
        0,
        0,
        [],
    )
    assert not path.exists()


def test_a_recorded_turn_is_generated_again_from_its_record(path: Path) -> None:
    run = Run(path)
    run.iterate(range(1))
    for record in FlywheelStore(path).find(Filter()):
        assert replay(record, ScriptedGenerator(speak)).equal
    record = FlywheelStore(path).read(1)
    changed = replay(record, ScriptedGenerator(lambda prompt, request: "jolly"))
    assert not changed.equal
    assert changed.candidates[0].first_difference == (2 if record.candidates[0].reading == "joy" else 0)


def test_candidates_of_several_views_are_replayed_each_from_its_own_prompt(path: Path) -> None:
    run = Run(path, views=("plain", "anonymous", "rephrased"))
    run.iterate(range(1))
    for record in FlywheelStore(path).find(Filter(role="recognizer")):
        assert [c.view for c in record.candidates] == ["plain", "plain", "anonymous", "rephrased"]
        assert [view for view, _ in record.view_prompts] == ["plain", "anonymous", "rephrased"]
        assert dict(record.view_prompts)["plain"] == record.prompt_of(record.candidates[1])
        generator = ScriptedGenerator(speak)
        assert replay(record, generator).equal
        asked = [request.prompt_ids for request in generator.calls[0]]
        assert asked == [dict(record.view_prompts)[c.view] for c in record.candidates]
        assert len(set(asked)) == 3
    shown = CliRunner().invoke(app, ["show", str(path), "1"]).output
    assert "view " in shown
    assert " rephrased " in shown


def test_a_record_from_before_there_were_views_is_plain(path: Path) -> None:
    run = Run(path)
    run.iterate(range(1))
    run.flywheel.close()
    with closing(sqlite3.connect(path)) as store:
        (detail,) = store.execute("select detail from details where record_id = 1").fetchone()
        old = json.loads(detail)
        del old["view_prompts"]
        for candidate in old["candidates"]:
            del candidate["view"]
        store.execute("drop trigger details_keep")
        store.execute("update details set detail = ? where record_id = 1", (json.dumps(old),))
        store.execute(
            "create trigger details_keep before update on details "
            "begin select raise(abort, 'the flywheel is append-only'); end"
        )
        store.commit()
    record = FlywheelStore(path).read(1)
    assert {candidate.view for candidate in record.candidates} == {"plain"}
    assert replay(record, ScriptedGenerator(speak)).equal


def test_an_export_is_a_corpus(path: Path, tmp_path: Path) -> None:
    run = Run(path)
    run.iterate(range(3))
    out = tmp_path / "export" / "train.jsonl"
    result = CliRunner().invoke(app, ["export", str(path), str(out), "--role", "recognizer"])
    assert result.exit_code == 0, result.output
    corpus = load_corpus("jsonl", str(out))
    kept = list(FlywheelStore(path).find(Filter(kept=True, role="recognizer")))
    assert corpus.labels == LABELS
    assert [(c.turns[-1].text, c.turns[-1].labels) for c in corpus.conversations] == [
        (r.text, r.labels) for r in kept
    ]
    assert json.loads(out.read_text().splitlines()[0])["meta"]["record"] == kept[0].record_id
    again = CliRunner().invoke(app, ["export", str(path), str(out)])
    assert isinstance(again.exception, UserError)


@pytest.mark.parametrize("name", ["kept", "kept.json", "kept.jsonl.txt", "dev.jsonl", "test.jsonl"])
def test_an_export_has_a_name_that_is_read_as_training_data(path: Path, tmp_path: Path, name: str) -> None:
    Run(path).iterate(range(1))
    with closing(FlywheelStore(path)) as store:
        with pytest.raises(UserError, match=r"expected a name that is read as training data, .*train.jsonl"):
            export_jsonl(store, tmp_path / "out" / name)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["kept.jsonl", "train.jsonl", "my kept turns.jsonl"])
def test_a_check_finds_no_problem_in_an_export(path: Path, tmp_path: Path, name: str) -> None:
    """Label names are those that a run may have; a corpus read by another reader has some with "_"."""
    labels = (*LABELS, "no_emotion", "sad - but calm")
    check_label_set(labels)
    with closing(FlywheelStore(path, writable=True, labels=labels)) as store:
        group = score_group(
            recognizer_group(["joy"], ("joy",)), RewardConfig(), SCORE, dict.fromkeys(LABELS, 1.0)
        )
        store.append([replace(make_record(group, 1, 7, 0.5), kept=True, labels=("no_emotion",))])
        export_jsonl(store, tmp_path / "out" / name)
    for place in (tmp_path / "out" / name, *([tmp_path / "out"] if name == "train.jsonl" else [])):
        report = check_corpus(str(place))
        assert report.problems == ()
        assert report.labels == tuple(sorted(labels))
        assert [(s.split, s.dialogues) for s in report.splits] == [("train", 1)]


def test_the_commands_list_and_show(path: Path) -> None:
    run = Run(path)
    run.iterate(range(1))
    invoke = CliRunner().invoke
    listed = invoke(app, ["list", str(path.parent), "--kept"])
    assert listed.exit_code == 0, listed.output
    assert f"{run.flywheel.counts.offered} groups offered, {run.flywheel.counts.kept} kept" in listed.output
    shown = invoke(app, ["show", str(path), "1"])
    assert "record 1: recognizer" in shown.output
    assert "Ann: train number" in shown.output
    for candidate in FlywheelStore(path).read(1).candidates:  # whole in a pipe of 80 columns
        assert f" {candidate.seed} " in shown.output
    assert "…" not in shown.output + listed.output
    assert isinstance(invoke(app, ["show", str(path), "999"]).exception, UserError)


def test_an_export_that_cannot_be_written_says_so(path: Path) -> None:
    Run(path).iterate(range(1))
    result = CliRunner().invoke(app, ["export", str(path), "/dev/null/x.jsonl"])
    assert isinstance(result.exception, UserError)
    assert "/dev/null/x.jsonl: cannot be written (" in str(result.exception)


def test_an_export_of_nothing_or_beside_other_labels_leaves_no_file(path: Path, tmp_path: Path) -> None:
    FlywheelStore(path, writable=True, labels=LABELS).close()
    out = tmp_path / "e.jsonl"
    result = CliRunner().invoke(app, ["export", str(path), str(out)])
    assert isinstance(result.exception, UserError)
    assert sorted(p.name for p in tmp_path.iterdir() if "flywheel" not in p.name) == []


def test_records_made_by_one_offer_are_replaced_by_none(path: Path) -> None:
    run = Run(path)
    groups = run.play(0)
    first = run.flywheel.offer(groups, 1)
    assert run.flywheel.offer(groups, 1) == []
    assert (
        run.flywheel.offer([replace(g, group=replace(g.group, iteration=9)) for g in groups], 1)[0].record_id
        == len(first) + 1
    )
