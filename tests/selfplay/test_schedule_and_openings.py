"""Test that stateless schedules cover everything, real openings have their share, and SFT uses
self-play's prompts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.schema import SelfPlayConfig
from selfemo.corpora.conversation import Conversation, Corpus
from selfemo.selfplay.openings import KeptDialogue, OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.schedule import Schedule, interleave
from selfemo.selfplay.sft import SftExamples
from tests.helpers.scripted import LABELS, CharEncoder, conversation, turns

TRAIN = [
    conversation(
        str(i), f"Ann[joy]: line {i} one", f"Bo[{'anger' if i % 5 == 0 else 'joy'}]: line {i} two", "Ann: mm"
    )
    for i in range(10)
]
CONFIG = SelfPlayConfig(seeds_per_iteration=4, real_seed_share=0.5)
KEPT = [
    KeptDialogue(70 + i, "toy/train/0", turns("Ann: a", f"Bo[joy]: kept {i}"), ("Ann", "Bo"))
    for i in range(5)
]


@settings(max_examples=50)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 5))
def test_an_unbalanced_epoch_is_a_permutation(labels: list[str], epoch: int) -> None:
    schedule = Schedule(tuple(labels), 0.0, 1, "t")
    assert schedule.epoch_slots == len(labels)
    assert sorted(schedule.take(epoch * len(labels), len(labels))) == list(range(len(labels)))


@settings(max_examples=50)
@given(st.integers(0, 100), st.integers(1, 40), st.floats(0, 1))
def test_slots_do_not_depend_on_how_they_are_asked_for(start: int, count: int, balance: float) -> None:
    labels = tuple("aaaaaaabbc")
    whole = Schedule(labels, balance, 1, "t").take(start, count)
    assert whole == [
        Schedule(labels, balance, 1, "t").take(slot, 1)[0] for slot in range(start, start + count)
    ]


def test_full_balance_draws_labels_equally_and_still_visits_everything() -> None:
    schedule = Schedule(tuple("a" * 90 + "b" * 9 + "c"), 1.0, 1, "t")
    drawn = schedule.take(0, 5 * schedule.epoch_slots)
    counts = Counter(("a" * 90 + "b" * 9 + "c")[i] for i in drawn)
    assert max(counts.values()) == min(counts.values())
    assert set(drawn) == set(range(100))


def test_a_schedule_needs_items_and_a_sane_balance() -> None:
    with pytest.raises(ValueError, match="labels is empty"):
        Schedule((), 0.0, 1, "t")
    with pytest.raises(ValueError, match="balance"):
        Schedule(("a",), 2.0, 1, "t")


@given(st.floats(0, 1), st.integers(1, 200))
def test_interleaving_keeps_the_share_and_numbers_each_kind(share: float, count: int) -> None:
    dealt = [interleave(slot, share) for slot in range(count)]
    for kind in (True, False):
        assert [index for is_kind, index in dealt if is_kind is kind] == list(
            range(sum(k is kind for k, _ in dealt))
        )
    assert abs(sum(kind for kind, _ in dealt) - share * count) < 1 + 1e-6


def pool(config: SelfPlayConfig = CONFIG, train: list[Conversation] = TRAIN) -> OpeningPool:
    return OpeningPool(Corpus("toy", LABELS, tuple(train)), config, run_seed=5, history_turns=3)


def test_real_openings_walk_through_every_annotated_turn() -> None:
    seen = [
        opening
        for iteration in range(10)
        for opening in pool().draw(iteration, KEPT)
        if opening.parent is None
    ]
    assert len(seen) == 20
    assert len({(opening.source, opening.turns[-1].text) for opening in seen}) == 20


def test_kept_dialogues_fill_the_rest_and_never_more() -> None:
    for iteration in range(6):
        openings = pool().draw(iteration, KEPT)
        assert [opening.index for opening in openings] == [0, 1, 2, 3]
        assert sum(opening.parent is not None for opening in openings) == 2
        assert len({opening.parent for opening in openings if opening.parent is not None}) == 2
    assert [opening.parent for opening in pool().draw(0, KEPT[:1])] == [None, None, None, 70]
    assert all(opening.parent is None for opening in pool(replace(CONFIG, real_seed_share=1.0)).draw(0, KEPT))


def test_a_share_of_the_openings_is_what_all_of_them_hold_there() -> None:
    for kept in (KEPT, KEPT[:1], []):
        drawn = pool().draw(3, kept)
        shares = [range(a, b) for a in range(5) for b in range(a, 5)]
        assert all(pool().draw(3, kept, numbers=n) == drawn[n.start : n.stop] for n in shares)


def test_draws_are_deterministic_and_change_with_the_iteration() -> None:
    assert pool().draw(3, KEPT) == pool().draw(3, KEPT)
    assert pool().draw(3, KEPT) != pool().draw(4, KEPT)


def test_an_opening_ends_at_an_annotated_turn_and_knows_what_comes_next() -> None:
    for opening in pool(replace(CONFIG, seeds_per_iteration=20, real_seed_share=1.0)).draw(0):
        assert opening.turns[-1].labels
        assert opening.next_turn is not None
        assert opening.speakers == ("Ann", "Bo")


def test_seeds_come_from_the_training_split_alone() -> None:
    everything = pool(
        replace(CONFIG, seeds_per_iteration=20, real_seed_share=1.0),
        [*TRAIN, conversation("x", "A[joy]: y", split="dev")],
    )
    assert {opening.source.split("/")[1] for opening in everything.draw(0)} == {"train"}
    with pytest.raises(UserError, match="no annotated turn"):
        pool(train=[conversation("x", "A: y")])


PLANTED = "The copper kettle sings at noon, Mary!"


@pytest.mark.parametrize("split", ["dev", "test"])
def test_planted_dev_and_test_texts_enter_no_opening(split: str) -> None:
    """Plant held-out texts in the training split.

    Long ones enter no opening, short ones neither as the turn that is read nor as the one that
    follows.
    """
    lines = [
        *(f"A[joy]: start {i}" for i in range(3)),
        f"B[joy]: {PLANTED}",
        *(f"A[joy]: later {i}" for i in range(6)),
        "B[joy]: Okay.",
    ]
    train = [conversation("p", *lines, *(f"A[joy]: end {i}" for i in range(3)))]
    held = conversation("h", "C: the copper kettle sings  at noon mary", "D: OKAY", split=split)
    config = SelfPlayConfig(seeds_per_iteration=40, real_seed_share=1.0)
    openings = pool(config, [*train, held]).draw(0)
    following = {opening.next_turn.text for opening in openings if opening.next_turn is not None}
    assert PLANTED not in {turn.text for opening in openings for turn in opening.turns} | following
    assert "Okay." not in {opening.turns[-1].text for opening in openings} | following
    assert {opening.turns[-1].text for opening in openings} == {
        "start 0",
        "start 1",
        "later 3",
        "later 4",
        "end 0",
        "end 1",
        "end 2",
    }
    assert "Okay." in {turn.text for opening in openings for turn in opening.turns[:-1]}, (
        "short talk may stand in a context"
    )
    assert {PLANTED, "Okay."} <= {opening.turns[-1].text for opening in pool(config, train).draw(0)}
    allowed = pool(replace(config, short_repeats=True), [*train, held]).draw(0)
    following = {opening.next_turn.text for opening in allowed if opening.next_turn is not None}
    assert PLANTED not in {turn.text for opening in allowed for turn in opening.turns} | following
    assert {opening.turns[-1].text for opening in allowed} - {
        opening.turns[-1].text for opening in openings
    } == {
        "later 5",
        "Okay.",
    }, "short talk is read, and may follow"


def test_texts_of_other_corpora_that_the_corpus_bars_enter_no_opening() -> None:
    barring = Corpus(
        "toy",
        LABELS,
        (conversation("p", "A[joy]: one", "B[joy]: two", "A[joy]: three"),),
        barred_texts=("Three!",),
    )
    openings = OpeningPool(barring, replace(CONFIG, real_seed_share=1.0), 5, 3).draw(0)
    assert {opening.turns[-1].text for opening in openings} == {"one"}


def test_favouring_rare_labels_reaches_the_openings() -> None:
    config = SelfPlayConfig(seeds_per_iteration=20, real_seed_share=1.0, seed_label_balance=1.0)
    assert sum(opening.turns[-1].labels == ("anger",) for opening in pool(config).draw(0)) == 10


def examples(expression_share: float = 0.25, train: list[Conversation] = TRAIN) -> SftExamples:
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    return SftExamples(
        train, prompts, SelfPlayConfig(), run_seed=5, expression_share=expression_share, max_length=1000
    )


def test_examples_ask_as_self_play_does_and_answer_as_people_did() -> None:
    batch = list(map(examples().example, range(27)))
    roles = Counter(example.role for example in batch)
    assert roles == {"recognizer": 21, "responder": 6}
    for example in batch:
        prompt, completion = (
            CharEncoder().decode(example.prompt_ids),
            CharEncoder().decode(example.completion_ids),
        )
        if example.role == "recognizer":
            number = int(prompt.split("> ")[1].split()[2])
            gold = "anger" if number % 5 == 0 and "two" in prompt.split("> ")[1] else "joy"
            assert completion == gold
        else:
            assert completion.startswith("line")
            assert completion not in prompt
    recognised = [e.prompt_ids for e in batch if e.role == "recognizer"]
    assert len(set(recognised)) == 20, "one epoch shows every annotated turn"


def test_with_thinking_the_supervised_start_still_teaches_answers_after_a_closed_block() -> None:
    """Put answers behind a closed thinking block, as nobody wrote thoughts down.

    Directly after an open turn, a bare answer would unlearn thinking.
    """
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80, thinking=True)
    taught = SftExamples(TRAIN, prompts, SelfPlayConfig(), run_seed=5, expression_share=0.25, max_length=1000)
    assert list(map(taught.example, range(27))) == list(map(examples().example, range(27)))


def test_an_example_is_a_function_of_its_slot() -> None:
    """Ranks make other slots, in another order."""
    one, other, slots = examples(), examples(), range(60)
    assert list(map(one.example, slots)) == list(map(other.example, reversed(slots)))[::-1]


def test_replies_that_self_play_would_gate_are_not_taught() -> None:
    train = [conversation("1", "A[joy]: hi there", "B[joy]: what joy it is", "A[joy]: no")]
    with pytest.raises(UserError, match="annotated reply"):
        examples(train=train)
    assert {e.role for e in map(examples(0.0, train).example, range(5))} == {"recognizer"}


def test_an_example_longer_than_the_model_takes_is_named() -> None:
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    taught = SftExamples(TRAIN, prompts, SelfPlayConfig(), run_seed=5, expression_share=0.0, max_length=60)
    with pytest.raises(
        UserError,
        match=r"dialogue toy/train/\d, turn \d: as an SFT example .* model.max_length=60 holds fewer: lower",
    ):
        taught.example(0)
