"""Turns without labels open episodes: as often as asked, each once an epoch, with consensus for gold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.schema import RewardConfig, SelfPlayConfig
from selfemo.corpora.conversation import Conversation, Corpus
from selfemo.corpora.labelled import hide_labels, without_labels
from selfemo.rewards.scoring import Rewards
from selfemo.rollout.api import GenerationRequest
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.records import Opening
from selfemo.selfplay.room import longest_requests
from selfemo.selfplay.schedule import MixedSchedule, Schedule
from selfemo.selfplay.transitions import TransitionPrior
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator, conversation

LABELLED = [
    conversation(str(i), f"Ann[joy]: {i} one", f"Bo[anger]: {i} two", "Ann: disputed") for i in range(6)
]
BARE = [conversation(f"bare {i}", f"Ann: bare {i} one", f"Bo: bare {i} two") for i in range(3)]
CONFIG = SelfPlayConfig(seeds_per_iteration=6, real_seed_share=1.0)


def openings(
    config: SelfPlayConfig = CONFIG, train: list[Conversation] | None = None, count: int = 3
) -> list[Opening]:
    """Those of the first iterations."""
    corpus = Corpus("toy", LABELS, tuple([*LABELLED, *BARE] if train is None else train))
    pool = OpeningPool(corpus, config, run_seed=5, history_turns=3)
    return [opening for iteration in range(count) for opening in pool.draw(iteration)]


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=12), st.integers(1, 12), st.integers(0, 3))
def test_at_its_natural_share_an_epoch_holds_every_item_once(labels: list[str], others: int, epoch: int):
    size = len(labels) + others
    mixed = MixedSchedule.of(tuple(labels), others, others / size, 0.0, 1, "t")
    assert sorted(mixed.take(epoch * size, size)) == list(range(size))


@given(st.integers(0, 60), st.integers(1, 40), st.floats(0, 1))
def test_slots_do_not_depend_on_how_they_are_asked_for(start: int, count: int, share: float) -> None:
    mixed = MixedSchedule.of(tuple("aab"), 4, share, 0.3, 1, "t")
    assert mixed.take(start, count) == [mixed.take(slot, 1)[0] for slot in range(start, start + count)]


@pytest.mark.parametrize("balance", [0.0, 0.7])
@pytest.mark.parametrize("bare", [[], BARE])
def test_without_unlabelled_openings_the_draw_is_the_labelled_schedule(balance: float, bare: list) -> None:
    """Bit for bit what a pool of labelled turns alone has always drawn, from both of its schedules."""
    places = [(c, i) for c in LABELLED for i in (0, 1)]
    labels = tuple(c.turns[i].labels[0] for c, i in places)
    walk, spare = (Schedule(labels, balance, 5, purpose) for purpose in ("seeds", "spare seeds"))
    wanted = []
    for iteration in range(7):
        items = walk.take(iteration * 4, 4) + spare.take(iteration * 2, 2)
        wanted += [(places[item][0].key, places[item][0].turns[places[item][1]]) for item in items]
    config = replace(CONFIG, real_seed_share=0.6, seed_label_balance=balance)
    if bare:
        config = replace(config, unlabelled_share=0.0)
    drawn = openings(config, [*LABELLED, *bare], 7)
    assert [(opening.source, opening.turns[-1]) for opening in drawn] == wanted


def test_by_default_every_turn_of_both_kinds_opens_once_per_epoch() -> None:
    drawn = openings()  # 12 labelled turns and 6 of dialogues without labels
    assert len({opening.turns[-1].text for opening in drawn}) == 18
    assert sum(not opening.turns[-1].labels for opening in drawn) == 6
    for first in (0, 6, 12):
        assert sum(not opening.turns[-1].labels for opening in drawn[first : first + 6]) == 2


def test_a_turn_that_annotators_left_out_of_a_labelled_dialogue_opens_nothing() -> None:
    assert "disputed" not in {opening.turns[-1].text for opening in openings()}


@pytest.mark.parametrize(("share", "bare"), [(0.5, 9), (1.0, 18), (0.0, 0)])
def test_the_share_of_unlabelled_openings_is_the_one_asked_for(share: float, bare: int) -> None:
    drawn = openings(replace(CONFIG, unlabelled_share=share))
    assert sum(not opening.turns[-1].labels for opening in drawn) == bare


def test_a_kind_that_is_asked_for_and_absent_is_refused() -> None:
    with pytest.raises(UserError, match=r"selfplay.unlabelled_share=0.5, but no dialogue without labels"):
        openings(replace(CONFIG, unlabelled_share=0.5), LABELLED)
    with pytest.raises(UserError, match="no annotated turn"):
        openings(train=BARE)
    assert len(openings(replace(CONFIG, unlabelled_share=1.0), BARE, 1)) == 6


def test_dev_and_test_texts_open_nothing_in_dialogues_without_labels_either() -> None:
    held = conversation("h", "C[joy]: BARE 0 ONE!", split="test")
    drawn = openings(train=[*LABELLED, *BARE, held], count=6)
    assert not {"bare 0 one", "bare 0 two"} <= {opening.turns[-1].text for opening in drawn}
    assert "bare 0 one" not in {opening.turns[-1].text for opening in drawn}
    assert {"bare 1 one", "bare 1 two"} <= {opening.turns[-1].text for opening in drawn}


def test_a_group_on_an_unlabelled_turn_is_held_to_its_own_consensus() -> None:
    def speak(prompt: str, request: GenerationRequest) -> str:
        return "anger" if request.seed % 3 == 0 else "joy"

    rewards = Rewards(RewardConfig(smoothing=0.0), LABELLED, LABELS)
    play = replace(CONFIG, unlabelled_share=0.5, turns=0)
    selfplay = SelfPlay(
        ScriptedGenerator(speak),
        PromptBuilder(CharEncoder(), LABELS, 3, 80),
        rewards.score,
        TransitionPrior.estimate(LABELLED),
        play,
        11,
    )
    episodes = selfplay.play(openings(play, count=2), 0)
    scored = rewards.score_groups([group for episode in episodes for group in episode.groups])
    bare = [group for group in scored if "bare" in group.group.source]
    assert len(bare) == len(scored) // 2
    for group in scored:
        assert (group.group.gold is None) == (group in bare)
    gates = set()
    for group in bare:
        consensus = group.group.consensus
        answers = [sample.text for sample in group.group.samples]
        assert group.component("alignment") == tuple(float((text,) == consensus.labels) for text in answers)
        assert group.frequency_weight == 1.0
        assert group.gate == (0.5 <= consensus.agreement <= 0.95)
        gates.add(group.gate)
    assert gates == {True, False}, "groups inside and outside the range of agreement"


def test_revealed_labels_stand_in_the_openings_and_move_none() -> None:
    """The oracle draws the same turns at the same slots; only the hidden ones have gold then."""
    corpus = Corpus("toy", LABELS, tuple(LABELLED))
    hidden, revealed = (
        [
            opening
            for iteration in range(4)
            for opening in OpeningPool(hide_labels(corpus, 0.5, 5, reveal), CONFIG, 5, 3).draw(iteration)
        ]
        for reveal in (False, True)
    )
    truth = {(c.key, turn.text): turn for c in LABELLED for turn in c.turns}
    assert [(o.index, o.source, o.speakers) for o in hidden] == [
        (o.index, o.source, o.speakers) for o in revealed
    ]
    for blind, seen in zip(hidden, revealed, strict=True):
        assert [turn.text for turn in blind.turns] == [turn.text for turn in seen.turns]
        assert all(turn == truth[seen.source, turn.text] for turn in seen.turns)
        if seen.next_turn is not None:
            assert seen.next_turn == truth[seen.source, seen.next_turn.text]
    bare = [blind for blind in hidden if not any(turn.labels for turn in blind.turns)]
    assert len(bare) > len(hidden) / 3
    assert all(blind.next_turn is None or not blind.next_turn.labels for blind in bare)


def test_room_is_measured_on_dialogues_without_labels_too() -> None:
    """A prompt that is too long would otherwise be found in the middle of a run."""
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 200)
    long = conversation("long", f"Ann[joy]: {'word ' * 30}")
    asked = [
        max(len(request.prompt_ids) for request in longest_requests(prompts, [*LABELLED, last], CONFIG))
        for last in (long, without_labels(long))
    ]
    assert asked[1] > max(len(request.prompt_ids) for request in longest_requests(prompts, LABELLED, CONFIG))
    assert asked[1] <= asked[0]
