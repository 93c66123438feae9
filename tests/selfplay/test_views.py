"""Views show the same turn differently, groups are dealt over them, and one view changes no bit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config.schema import RewardConfig, RunConfig, SelfPlayConfig
from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import Answer, FormatFailure, Reading
from selfemo.planning.workload import workload_of
from selfemo.rewards.components import consistencies
from selfemo.rewards.scoring import ScoredGroup, score_group
from selfemo.rollout.api import GenerationRequest
from selfemo.selfplay.consensus import vote
from selfemo.selfplay.episode import SelfPlay, view_seed
from selfemo.selfplay.prompts import PromptBuilder, recognizer_text
from selfemo.selfplay.records import Episode, Opening
from selfemo.selfplay.room import longest_requests
from selfemo.selfplay.sft import SftExamples
from selfemo.selfplay.transitions import TransitionPrior
from selfemo.selfplay.views import (
    Shown,
    view_named,
    view_names,
    views_of_samples,
)
from tests.helpers.groups import SCORE, recognizer_group
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator, conversation, turns

DIALOGUE = turns(
    "Ann: one two three four", "Bo: five six seven", "Ann: eight", "Cy: nine ten", "Bo: the end of it"
)
PROMPTS = PromptBuilder(CharEncoder(), LABELS, 4, 80)
TRAIN = [
    conversation(str(i), f"Ann[joy]: start of {i}", f"Bo[anger]: {i} goes on so", "Ann[joy]: well then")
    for i in range(6)
]
OPENINGS = [
    Opening(0, "toy/train/7", turns("Ann[joy]: we won it all", "Bo: yes we did")),
    Opening(1, "toy/train/8", turns("Bo: it broke again", "Ann: oh no not that")),
]
ONE_LABEL = dict.fromkeys(LABELS, 1.0)
readings_of_labels = st.lists(
    st.lists(st.sampled_from(LABELS), min_size=1, max_size=3, unique=True).map(lambda x: Answer(tuple(x)))
    | st.just(FormatFailure("empty")),
    min_size=2,
    max_size=8,
)


def lines(view: str, seed: int = 3, dialogue: Sequence[Turn] = DIALOGUE) -> list[str]:
    return CharEncoder().decode(PROMPTS.recognize(dialogue, view_named(view), seed)).splitlines()


def test_each_view_shows_what_it_says() -> None:
    plain = CharEncoder().decode(PROMPTS.recognize(DIALOGUE)).splitlines()
    assert lines("plain") == plain
    assert lines("short") == [*plain[:2], *plain[-3:]], "two of four earlier turns"
    assert [line.split(":")[0] for line in lines("anonymous")[2:]] == ["A", "B", "A", "C", "> B"]
    assert [line.split(": ")[1] for line in lines("anonymous")[2:]] == [
        line.split(": ")[1] for line in plain[2:]
    ]
    assert lines("labels")[1:] == plain[1:]
    assert lines("rephrased")[1:] == plain[1:]
    assert "anger, joy, neutral, sadness" in lines("rephrased")[0]
    assert lines("rephrased")[0] != plain[0]


def test_a_shuffled_label_list_holds_every_label_once_and_moves_with_the_seed() -> None:
    def listed(seed: int) -> list[str]:
        return lines("labels", seed)[0].removeprefix("Which of ").split(" does")[0].split(", ")

    orders = [listed(seed) for seed in range(20)]
    assert all(sorted(order) == list(LABELS) for order in orders)
    assert len({tuple(order) for order in orders}) > 5


@given(st.lists(st.text("ab ", max_size=20), min_size=1, max_size=5), st.integers(0, 99))
def test_a_tenth_of_the_historys_words_goes_and_none_of_the_last_line(texts: list[str], seed: int) -> None:
    shown = Shown(tuple(Turn("Ann", text) for text in texts), LABELS)
    thin = view_named("dropped").show(shown, random.Random(seed))
    before, after = ([word for turn in s.turns[:-1] for word in turn.text.split()] for s in (shown, thin))
    assert len(before) - len(after) == -(-len(before) // 10)
    rest = iter(before)
    assert all(word in rest for word in after), "in their order"
    assert (thin.turns[-1], thin.labels, len(thin.turns)) == (shown.turns[-1], shown.labels, len(shown.turns))


def test_a_line_without_blanks_loses_a_tenth_too() -> None:
    shown = Shown((Turn("Ann", "今天天气很好，我们去公园吧"), Turn("Bo", "好")), LABELS)
    thin = view_named("dropped").show(shown, random.Random(0)).turns[0].text
    assert 0 < len(thin) < len(shown.turns[0].text), "a part of the line, not all of it"


@pytest.mark.parametrize("view", view_names())
def test_a_view_is_a_function_of_its_seed_and_leaves_the_line_to_read_alone(view: str) -> None:
    for seed in range(8):
        assert lines(view, seed) == lines(view, seed)
        assert lines(view, seed)[-1].endswith(": the end of it")
        assert lines(view, seed, turns("Bo: alone"))[-1].endswith(": alone"), "a turn without history"


def test_more_speakers_than_letters_stay_apart() -> None:
    crowd = Shown(tuple(Turn(f"n{i}", "hm") for i in range(60)), LABELS)
    assert len({turn.speaker for turn in view_named("anonymous").show(crowd, random.Random(0)).turns}) == 60


@given(st.integers(1, 6), st.integers(2, 16))
def test_samples_are_dealt_evenly_and_those_of_a_view_are_neighbours(count: int, size: int) -> None:
    """Neighbours, because packing shares the prompt of neighbours alone."""
    views = view_names()[: min(count, size)]
    dealt = views_of_samples(views, size)
    assert [view for view, _ in groupby(dealt)] == list(views)
    shares = Counter(dealt).values()
    assert len(dealt) == size
    assert max(shares) - min(shares) <= 1


def vote_without_views(readings: Sequence[Reading]) -> tuple[object, ...]:
    """Labels, votes, answers and agreement as they were computed when a group had one prompt."""
    answers = [reading for reading in readings if isinstance(reading, Answer)]
    named = Counter(label for answer in answers for label in answer.labels)
    primary = Counter(answer.primary for answer in answers)
    ranked = sorted(named, key=lambda label: (-named[label], -primary[label], label))
    winners = [label for label in ranked if 2 * named[label] > len(answers)] or ranked[:1]
    pairs = list(combinations(readings, 2))
    agreement = sum(SCORE.of_reading(a, b.labels) if isinstance(b, Answer) else 0.0 for a, b in pairs) / len(
        pairs
    )
    return tuple(winners[:3]), tuple((label, named[label]) for label in ranked), len(answers), agreement


def consistency_without_views(readings: Sequence[Reading], index: int) -> float:
    others = [reading for i, reading in enumerate(readings) if i != index]
    scores = [
        SCORE.of_reading(readings[index], other.labels) for other in others if isinstance(other, Answer)
    ]
    return sum(scores) / len(others)


@given(readings_of_labels)
def test_the_vote_of_one_view_is_bit_for_bit_the_vote_without_views(readings: list[Reading]) -> None:
    for views in ([], ["plain"] * len(readings)):
        found = vote(readings, SCORE, views)
        assert (found.labels, found.votes, found.answers, found.agreement) == vote_without_views(readings)
        assert found.reference("plain") == found.labels
    for i in range(len(readings)):
        assert consistencies(readings, SCORE, ["plain"] * len(readings))[i] == consistency_without_views(
            readings, i
        )


@given(readings_of_labels, st.sampled_from([None, ("joy",)]))
def test_rewards_of_one_view_are_bit_for_bit_those_without_views(
    readings: list[Reading], gold: tuple[str, ...] | None
) -> None:
    texts = [", ".join(r.labels) if isinstance(r, Answer) else "" for r in readings]
    scored = score_group(recognizer_group(texts, gold), RewardConfig(), SCORE, ONE_LABEL)
    labels, _, _, agreement = vote_without_views(readings)
    reference = gold or labels
    alignment = [SCORE.of_reading(reading, reference) if reference else 0.0 for reading in readings]
    gate = bool(labels) and (labels[0] in gold if gold else 0.5 <= agreement <= 0.95)
    assert scored.scores == scored.ranked_by == tuple(alignment), "what the range threshold looks at, too"
    assert scored.component("alignment") == tuple(alignment)
    assert scored.component("consistency") == tuple(
        consistency_without_views(readings, i) if gate else 0.0 for i in range(len(readings))
    )


def answer(prompt: str, request: GenerationRequest) -> str:
    if prompt.startswith("Write"):
        return f"word{request.seed % 1009} goes on word{request.seed % 997}"
    return LABELS[request.seed % 3]


def play(
    config: SelfPlayConfig, iteration: int = 4, openings: Sequence[Opening] = OPENINGS
) -> tuple[list[Episode], ScriptedGenerator]:
    generator = ScriptedGenerator(answer)
    selfplay = SelfPlay(generator, PROMPTS, SCORE, TransitionPrior.estimate(TRAIN), config, run_seed=11)
    return selfplay.play(openings, iteration), generator


PLAIN = SelfPlayConfig(
    turns=1, recognizer_group_size=6, responder_group_size=2, max_answer_tokens=20, max_utterance_tokens=80
)
SEVERAL = replace(PLAIN, views=("plain", "labels", "anonymous"))


def test_prompts_of_one_view_are_those_without_views() -> None:
    _, generator = play(PLAIN)
    asked = [CharEncoder().decode(request.prompt_ids) for request in generator.calls[0]]
    assert asked == [recognizer_text(opening.turns, LABELS) for opening in OPENINGS for _ in range(6)]
    assert generator.calls[0][0].prompt_ids == PROMPTS.recognize(OPENINGS[0].turns)


def test_a_group_is_dealt_over_the_views_of_its_turn() -> None:
    episodes, generator = play(SEVERAL)
    for episode in episodes:
        group, replies = episode.groups
        assert [sample.view for sample in group.samples] == ["plain"] * 2 + ["labels"] * 2 + ["anonymous"] * 2
        for sample in group.samples:
            seed = view_seed(11, 4, group.episode, 0, sample.view)
            assert sample.prompt_ids == PROMPTS.recognize(
                episode.opening.turns, view_named(sample.view), seed
            )
        assert len({sample.prompt_ids for sample in group.samples}) == 3
        assert {sample.view for sample in replies.samples} == {"plain"}
    assert all(
        "Which of anger, joy, neutral" in CharEncoder().decode(r.prompt_ids) for r in generator.calls[2]
    ), "replies are read in the plain view"


def test_views_depend_on_run_iteration_group_and_view_alone() -> None:
    together = play(SEVERAL)[0]
    assert together == [play(SEVERAL, openings=[opening])[0][0] for opening in OPENINGS], (
        "however they are dealt over ranks"
    )
    shuffled = {
        sample.prompt_ids
        for iteration in range(8)
        for episode in play(SEVERAL, iteration)[0]
        for sample in episode.groups[0].samples
        if sample.view == "labels"
    }
    assert len(shuffled) > 10, "drawn anew for every group"


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        ((("joy", "joy", "joy", "joy"), ("anger",), ("anger",)), ("anger",)),
        ((("joy", "joy", "anger"), ("anger", "anger"), ("joy", "")), ("joy",)),
        ((("joy",), ("anger",)), ("joy",)),
        ((("anger", "neutral"), ("", ""), ("neutral", "neutral")), ("neutral",)),
        ((("", ""), ("",)), ()),
    ],
    ids=[
        "a view has one vote",
        "shares add up",
        "ties go to the first view",
        "silent views do not vote",
        "nothing",
    ],
)
def test_consensus_over_views(answers: Sequence[Sequence[str]], labels: tuple[str, ...]) -> None:
    texts = [text for of_view in answers for text in of_view]
    views = [view for view, of_view in zip(view_names(), answers) for _ in of_view]
    consensus = recognizer_group(texts, None, views=views).consensus
    assert consensus.labels == labels
    for label, share in consensus.shares:
        spoke = [of_view for of_view in answers if any(of_view)]
        wanted = [sum(text == label for text in of_view) / sum(map(bool, of_view)) for of_view in spoke]
        assert share == pytest.approx(sum(wanted) / len(wanted))


FIRM = ["joy", "joy", "anger", "anger"]
TWO = ["plain", "plain", "short", "short"]


def scored(
    answers: list[str], views: list[str], other_views: bool = False, gold: tuple[str, ...] | None = None
) -> ScoredGroup:
    group = recognizer_group(answers, gold, views=views, other_views=other_views)
    return score_group(group, RewardConfig(), SCORE, ONE_LABEL)


def test_agreement_within_a_view_counts_for_nothing() -> None:
    assert scored(FIRM, TWO).group.consensus.agreement == SCORE(("joy",), ("anger",))
    assert scored(["joy"] * 4, TWO).group.consensus.agreement == 1.0
    assert not scored(FIRM, TWO).gate, "mean agreement over all pairs would open it"
    halves = recognizer_group(FIRM, None).consensus.agreement
    assert 0.3 < halves < 0.5, "pairs inside the views raise it"


def test_views_that_disagree_firmly_rank_nothing() -> None:
    tied = scored(FIRM, TWO)
    assert max(tied.scores) - min(tied.scores) > 0.5, (
        "the vote's arbitrary winner would rank one above the other"
    )
    assert tied.alignment_range == 0.0
    two_to_one = scored(["joy", "joy", "anger"], ["plain", "short", "labels"])
    assert two_to_one.alignment_range > 0.2
    assert scored(FIRM, TWO, gold=("joy",)).ranked_by == scored(FIRM, TWO, gold=("joy",)).scores, "gold ranks"


def test_a_sample_may_be_compared_with_the_other_views_alone() -> None:
    answers, views = ["joy", "joy", "anger", "anger"], ["plain", "plain", "short", "labels"]
    assert scored(answers, views).group.consensus.labels == ("anger",)
    own, others = scored(answers, views).scores, scored(answers, views, other_views=True).scores
    miss = SCORE(("joy",), ("anger",))
    assert own == (miss, miss, 1.0, 1.0)
    assert others[:2] == (miss, miss)
    reference = recognizer_group(answers, None, views=views, other_views=True).consensus.reference
    assert reference("plain") == ("anger",)
    assert reference("short") == ("joy",), "a tie of plain and labels goes to plain, the first"
    assert others[2] == miss
    assert scored(answers, views, other_views=True, gold=("joy",)).scores[2] == miss, (
        "gold stands above any vote"
    )
    assert scored(answers, views, other_views=True, gold=("anger",)).scores[2] == 1.0


def test_self_play_compares_as_the_setting_says() -> None:
    for episode in play(replace(SEVERAL, consensus="other_views"))[0]:
        assert [view for view, _ in episode.groups[0].consensus.of_other_views] == list(SEVERAL.views)
    assert all(episode.groups[0].consensus.of_other_views == () for episode in play(SEVERAL)[0])


def examples(views: Sequence[str]) -> SftExamples:
    return SftExamples(
        TRAIN, PROMPTS, SelfPlayConfig(), run_seed=5, expression_share=0.25, max_length=1000, views=views
    )


def test_supervised_examples_are_shown_in_drawn_views() -> None:
    plain, several = (
        list(map(examples(views).example, range(60))) for views in (["plain"], ["plain", "anonymous"])
    )
    assert several[20:] == [examples(["plain", "anonymous"]).example(slot) for slot in range(20, 60)]
    assert [e.completion_ids for e in several] == [e.completion_ids for e in plain]
    changed = [
        a.prompt_ids != b.prompt_ids for a, b in zip(plain, several, strict=True) if a.role == "recognizer"
    ]
    assert 10 < sum(changed) < len(changed) - 10
    assert all(a == b for a, b in zip(plain, several, strict=True) if a.role == "responder")


def test_the_room_check_accounts_for_every_view() -> None:
    config = SelfPlayConfig()
    plain, several = (
        longest_requests(PROMPTS, TRAIN, config),
        longest_requests(PROMPTS, TRAIN, config, ["rephrased"]),
    )
    longest = [max(len(request.prompt_ids) for request in requests) for requests in (plain, several)]
    assert longest[1] > longest[0], "the other phrasing is longer"


def test_a_plan_counts_a_prompt_for_each_view() -> None:
    calls = [workload_of(RunConfig(selfplay=play)).calls[0] for play in (SelfPlayConfig(), SEVERAL)]
    assert [call.groups for call in calls] == [16, 48]
