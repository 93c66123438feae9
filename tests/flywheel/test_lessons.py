"""Test what the flywheel teaches: consensus on real turns, kept replies, the same after a resume."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config.schema import FlywheelConfig, RewardConfig
from selfemo.corpora.conversation import Corpus
from selfemo.flywheel.flywheel import Flywheel
from selfemo.flywheel.lessons import Lesson
from selfemo.flywheel.rule import CONSENSUS
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.rewards.scoring import Rewards, ScoredGroup, score_group
from selfemo.selfplay.openings import place_of
from selfemo.selfplay.records import Group
from selfemo.selfplay.teacher import TaughtTurns
from tests.helpers.groups import SCORE, recognizer_group, responder_group
from tests.helpers.scripted import LABELS, conversation, turns

CORPUS = Corpus("toy", LABELS, (conversation("0", "Ann[joy]: one", "Bo[joy]: two"),))
REWARDS = Rewards(RewardConfig(), CORPUS.split("train"), LABELS)
SAME_LINE = turns("Ann: how was it", "Bo: it went as it goes")


def flywheel(path: Path, is_writer: bool = True) -> Flywheel:
    return Flywheel(FlywheelConfig(), CORPUS, REWARDS, path, is_writer)


def scored(group: Group, episode: int, iteration: int = 0) -> ScoredGroup:
    placed = replace(group, episode=episode, iteration=iteration, source=f"toy/train/{episode}")
    return score_group(placed, RewardConfig(), SCORE, dict.fromkeys(LABELS, 1.0))


def unlabelled(answers: list[str], episode: int, iteration: int = 0) -> ScoredGroup:
    return scored(recognizer_group(answers, None, context=SAME_LINE), episode, iteration)


def taught(*labels: tuple[str, ...]) -> TaughtTurns:
    """What a teacher says of as many turns: nine in ten parts the first label, one in ten parts neutral."""
    shares = tuple(((own[0], 0.9), ("neutral", 0.1)) if own else () for own in labels)
    return TaughtTurns((), labels, shares, ())


def reply(episode: int, iteration: int = 0) -> list[ScoredGroup]:
    """A reply written for joy, and the group that reads it with some disagreement."""
    written = responder_group([(f"grand word{episode} of all things", "joy")], ("joy",))
    read = recognizer_group(["joy", "joy", "joy", "anger"], None, turn=1)
    return [scored(written, episode, iteration), scored(read, episode, iteration)]


def test_every_real_turn_without_labels_is_kept_with_the_consensus_and_opens_nothing(tmp_path: Path) -> None:
    wheel = flywheel(tmp_path / "flywheel.sqlite")
    groups = [unlabelled(["sadness", "joy, sadness", "sadness"], episode) for episode in range(5)]
    records = wheel.offer(groups, 1)
    assert [(r.kept, r.reason, r.labels) for r in records] == [(True, CONSENSUS, ("sadness",))] * 5, (
        "neither a cap nor a repeated text drops one"
    )
    assert wheel.counts.kept == 5
    assert wheel.kept_dialogues() == []
    assert wheel.role_counts["recognizer"] == {"passed": 0, "kept": 0}, "they use up no cap"


def test_a_group_on_a_turn_that_the_teacher_has_read_is_dropped(tmp_path: Path) -> None:
    wheel = flywheel(tmp_path / "flywheel.sqlite")
    taught = scored(replace(recognizer_group(["joy", "joy"], None), taught=("anger",)), 0)
    (record,) = wheel.offer([taught], 1)
    assert (record.kept, record.reason) == (False, "taught")


def test_a_teachers_labels_are_recorded_and_the_newest_hold(tmp_path: Path) -> None:
    wheel = flywheel(tmp_path / "flywheel.sqlite")
    first, again, silent = (unlabelled(["joy", "joy"], 9, i) for i in (0, 4, 5))
    wheel.teach([first], taught(("joy",)), 1)
    assert wheel.lessons.labels(since=0) == {place_of("toy/train/9", SAME_LINE): ("joy",)}
    wheel.teach([again], taught(("anger",)), 2)
    wheel.teach([silent], taught(()), 3)
    assert wheel.lessons.labels(since=0) == {place_of("toy/train/9", SAME_LINE): ("anger",)}
    assert wheel.lessons.labels(since=5) == {}, "of this round alone"
    wheel.close()
    with_reasons = [
        (r.iteration, r.labels, r.reason) for r in FlywheelStore(wheel_path(tmp_path)).find(Filter())
    ]
    assert with_reasons == [(0, ("joy",), CONSENSUS), (4, ("anger",), CONSENSUS), (5, (), "no answer")]


def wheel_path(root: Path) -> Path:
    return root / "flywheel.sqlite"


def test_a_reply_teaches_to_read_it_and_to_write_it(tmp_path: Path) -> None:
    wheel = flywheel(wheel_path(tmp_path))
    wheel.offer(reply(3), 1)
    read, write = wheel.lessons.draw(2, 0.5, 0, random.Random(1))
    assert (read.role, read.labels, read.turns[-1].text) == (
        "recognizer",
        ("joy",),
        "grand word3 of all things",
    )
    assert (write.role, write.labels, write.text) == ("responder", ("joy",), "grand word3 of all things")
    assert read.turns[:-1] == write.turns


def test_shares_are_kept_as_far_as_there_are_lessons(tmp_path: Path) -> None:
    wheel = flywheel(wheel_path(tmp_path))
    assert wheel.lessons.draw(8, 0.5, 0, random.Random(1)) == []
    wheel.offer([g for e in range(6) for g in reply(e)], 1)
    assert len(wheel.lessons.draw(8, 0.25, 0, random.Random(1))) == 8, "replies alone"
    wheel.teach([unlabelled(["anger", "anger"], e, 1) for e in range(20)], taught(*[("anger",)] * 20), 2)
    drawn = wheel.lessons.draw(8, 0.25, 0, random.Random(1))
    assert [lesson.labels for lesson in drawn] == [("anger",)] * 6 + [("joy",)] * 2
    assert len({id(lesson) for lesson in drawn}) == 8, "none twice"
    assert [x.labels for x in wheel.lessons.draw(4, 0.5, 1, random.Random(1))] == [("anger",)] * 4


def test_a_split_vote_teaches_its_likeliest_labels_by_their_shares() -> None:
    shares = (("joy", 0.6), ("anger", 0.3), ("neutral", 0.1))
    lesson = Lesson("recognizer", SAME_LINE, "Bo", ("joy", "sadness"), shares=shares)
    assert lesson.answers(1) == [(("joy", "sadness"), 1.0)], "the labels alone"
    assert lesson.answers(2) == [
        (("joy", "sadness"), pytest.approx(0.6 / 0.9)),
        (("anger",), pytest.approx(0.3 / 0.9)),
    ]
    parts = [part for _, part in lesson.answers(9)]
    assert parts == pytest.approx([0.6, 0.3, 0.1])
    assert Lesson("recognizer", SAME_LINE, "Bo", ("joy",)).answers(3) == [(("joy",), 1.0)], (
        "without a teacher"
    )


def with_reader(path: Path, is_writer: bool = True) -> Flywheel:
    return Flywheel(FlywheelConfig(), CORPUS, REWARDS, path, is_writer, has_reader=True)


def read_by_teacher(wheel: Flywheel, answers: list[list[str]], iteration: int) -> list[ScoredGroup]:
    """The teacher's readings of the replies that wait, as a round makes them."""
    groups = []
    for number, (reply, given) in enumerate(zip(wheel.lessons.unread(0), answers, strict=True)):
        opening = reply.opening(100 + number)
        read = replace(recognizer_group(given, None, context=opening.turns), parent=opening.parent)
        groups.append(scored(replace(read, target=reply.labels), opening.index, iteration))
    return groups


def test_a_reply_waits_for_the_teacher_and_teaches_if_it_is_read_as_it_was_meant(tmp_path: Path) -> None:
    wheel = with_reader(wheel_path(tmp_path))
    wheel.offer([reply(0)[0], reply(1)[0], reply(2)[0]], 1)  # the last of an episode: no group reads them
    assert wheel.lessons.draw(2, 1.0, 0, random.Random(1)) == []
    waiting = wheel.lessons.unread(0)
    assert [x.labels for x in waiting] == [("joy",)] * 3
    assert all(not x.opening(0).turns[-1].labels for x in waiting), "the teacher is not told"
    readings = read_by_teacher(wheel, [["joy", "joy", "anger"], ["anger", "anger", "joy"], ["", ""]], 4)
    assert wheel.read_back(readings, 2) == 1
    read, write = wheel.lessons.draw(2, 1.0, 4, random.Random(1))
    assert read.turns[-1].text == write.text == "grand word0 of all things"
    assert (read.labels, write.labels, read.turns[:-1]) == (("joy",), ("joy",), write.turns)
    assert wheel.kept_dialogues() == [], "a reading opens nothing"
    assert wheel.role_counts["recognizer"] == {"passed": 0, "kept": 0}, "and uses up no cap"
    wheel.close()
    found = FlywheelStore(wheel_path(tmp_path)).find(Filter(role="recognizer"))
    assert [(r.reason, r.labels, r.target, r.parent) for r in found] == [
        ("read back", ("joy",), ("joy",), waiting[0].record_id),
        ("read otherwise", ("anger",), ("joy",), waiting[1].record_id),
        ("no answer", (), ("joy",), waiting[2].record_id),
    ]


def test_replies_that_a_teacher_read_are_recalled(tmp_path: Path) -> None:
    wheel = with_reader(wheel_path(tmp_path))
    wheel.offer([g for e in range(6) for g in reply(e)], 1)
    wheel.read_back(read_by_teacher(wheel, [["joy"]] * 4 + [["anger"]] * 2, 3), 2)
    wheel.offer([g for e in range(6, 9) for g in reply(e, 3)], 3)
    wheel.close()
    again = with_reader(wheel_path(tmp_path), is_writer=False)
    assert again.counts == wheel.counts
    assert again.kept_dialogues() == wheel.kept_dialogues()
    assert again.lessons.unread(3) == wheel.lessons.unread(3)
    drawn, wanted = (f.lessons.draw(8, 1.0, 3, random.Random(7)) for f in (again, wheel))
    assert drawn == wanted
    assert len({lesson.turns for lesson in drawn if lesson.role == "responder"}) <= 4
    assert {lesson.text for lesson in drawn if lesson.role == "responder"} <= {
        f"grand word{n} of all things" for n in range(4)
    }
    again.close()


def test_without_a_reader_a_reply_that_no_group_read_is_dropped(tmp_path: Path) -> None:
    (record,) = flywheel(wheel_path(tmp_path)).offer([reply(0)[0]], 1)
    assert (record.kept, record.reason) == (False, "not read")


def test_steps_of_one_lesson_have_the_share_of_replies_on_average(tmp_path: Path) -> None:
    wheel = flywheel(wheel_path(tmp_path))
    wheel.offer([g for e in range(6) for g in reply(e)], 1)
    wheel.teach([unlabelled(["anger", "anger"], e, 1) for e in range(6)], taught(*[("anger",)] * 6), 2)
    drawn = [wheel.lessons.draw(1, 0.25, 0, random.Random(step)) for step in range(400)]
    assert all(len(lessons) == 1 for lessons in drawn)
    assert 70 < sum(lesson.labels == ("joy",) for (lesson,) in drawn) < 130


def test_a_flywheel_that_recalls_its_store_teaches_the_same(tmp_path: Path) -> None:
    wheel = flywheel(wheel_path(tmp_path))
    wheel.offer([g for e in range(3) for g in reply(e)], 1)
    wheel.teach([unlabelled(["anger", "joy"], e, 1) for e in range(7)], taught(*[("anger",)] * 6, ()), 2)
    wheel.offer([unlabelled(["joy", "joy"], e, 2) for e in range(3, 9)], 3)
    wheel.close()
    shares = {lesson.shares for lesson in wheel.lessons.draw(9, 0.0, 1, random.Random(1))}
    assert shares == {(("anger", 0.9), ("neutral", 0.1)), ()}, "groups that had no teacher have none"
    for is_writer in (True, False):
        again = flywheel(wheel_path(tmp_path), is_writer)
        assert again.counts == wheel.counts
        assert again.role_counts == wheel.role_counts
        for since in (0, 1, 2):
            drawn, wanted = (f.lessons.draw(9, 0.3, since, random.Random(since)) for f in (again, wheel))
            assert drawn == wanted
        assert again.kept_dialogues() == wheel.kept_dialogues()
        again.close()
