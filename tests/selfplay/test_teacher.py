"""Test the teacher: what it reads, what it teaches, and who is rewarded by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.config.schema import RewardConfig, SelfPlayConfig
from selfemo.corpora.conversation import Corpus, Turn
from selfemo.flywheel.lessons import Reply
from selfemo.rewards.scoring import Rewards, score_group
from selfemo.rollout.api import Completion, GenerationRequest
from selfemo.run.rounds import round_of
from selfemo.selfplay import teacher
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import KeptDialogue, OpeningPool, place_of
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.teacher import LARGEST_WEIGHT, alignment_weights, labels_to_teach, read_turns
from selfemo.selfplay.transitions import TransitionPrior
from tests.helpers.groups import SCORE, recognizer_group
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator, conversation

LABELLED = [conversation(str(i), f"Ann[joy]: {i} one", f"Bo[anger]: {i} two") for i in range(4)]
BARE = [conversation(f"bare {i}", f"Ann: bare {i} one", f"Bo: bare {i} two") for i in range(5)]
CORPUS = Corpus("toy", LABELS, (*LABELLED, *BARE))
CONFIG = SelfPlayConfig(
    seeds_per_iteration=4,
    real_seed_share=1.0,
    turns=0,
    recognizer_group_size=4,
    views=("plain", "rephrased"),
    teacher="round_start",
    max_answer_tokens=20,
)


def speak(prompt: str, request: GenerationRequest) -> str:
    """Answer anger where the instruction is rephrased and joy elsewhere; samples say sadness."""
    if request.temperature:
        return "sadness"
    return "anger" if prompt.startswith("How") else "joy"


def parts() -> tuple[SelfPlay, OpeningPool, Rewards]:
    rewards = Rewards(RewardConfig(), LABELLED, LABELS)
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    transitions = TransitionPrior.estimate(LABELLED)
    play = SelfPlay(ScriptedGenerator(speak), prompts, rewards.score, transitions, CONFIG, 5)
    return play, OpeningPool(CORPUS, CONFIG, 5, 3), rewards


def test_each_turn_is_read_greedily_once_in_every_view_in_one_call() -> None:
    play, pool, _ = parts()
    openings = pool.unlabelled(range(2), 0)
    groups = read_turns(play, openings, 0)
    (call,) = play.generator.calls  # type: ignore[attr-defined]
    assert {request.temperature for request in call} == {0.0}
    assert len(call) == 2 * len(groups) == 2 * 2 * len(BARE)
    assert all([s.view for s in group.samples] == ["plain", "rephrased"] for group in groups)
    assert {group.consensus.labels for group in groups} == {("joy",)}, "a tie is the first view's"
    assert min(group.episode for group in groups) == CONFIG.seeds_per_iteration, "after all episodes"
    assert len({group.episode for group in groups}) == len(groups)


def test_more_prompts_than_a_call_may_take_are_read_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    play, pool, _ = parts()
    openings = pool.unlabelled(range(2), 0)
    at_once = read_turns(play, openings, 0)
    monkeypatch.setattr(teacher, "READ_AT_ONCE", 7)
    assert read_turns(play, openings, 0) == at_once
    assert [len(call) for call in play.generator.calls] == [20, 7, 7, 6]  # type: ignore[attr-defined]
    assert read_turns(play, [], 0) == []


def test_turns_that_episodes_open_on_are_read_first() -> None:
    _, pool, _ = parts()
    drawn = [o for iteration in (2, 3) for o in pool.draw(iteration) if o.source.startswith("toy/train/bare")]
    opened = {place_of(o.source, o.turns) for o in drawn}
    read = [place_of(o.source, o.turns) for o in pool.unlabelled(range(2, 4), len(opened))]
    assert opened == set(read)
    assert len(pool.unlabelled(range(2, 4), 0)) == 2 * len(BARE)
    assert len(pool.unlabelled(range(2, 4), 3)) == 3


def test_samples_are_rewarded_for_the_teachers_labels_and_not_for_their_own_consensus() -> None:
    play, pool, _ = parts()
    openings = pool.unlabelled(range(1), 0)
    read = labels_to_teach(read_turns(play, openings, 0), {}, align=0)
    taught = {
        place_of(g.source, g.context): labels for g, labels in zip(read.groups, read.labels, strict=True)
    }
    groups = [
        group for e in play.play(pool.draw(0, taught=taught), 0) for group in e.groups if not group.gold
    ]
    assert groups
    assert {group.taught for group in groups} == {("joy",)}
    assert {group.consensus.labels for group in groups} == {("sadness",)}
    for group in groups:
        scored = score_group(group, RewardConfig(), SCORE, dict.fromkeys(LABELS, 1.0))
        assert max(scored.scores) < 0.1
        alone = score_group(replace(group, taught=None), RewardConfig(), SCORE, dict.fromkeys(LABELS, 1.0))
        assert min(alone.scores) == 1


def test_a_kept_real_turn_that_an_episode_opens_on_again_has_the_teachers_labels_too() -> None:
    _, pool, _ = parts()
    config = replace(CONFIG, real_seed_share=0.0)
    pool = OpeningPool(CORPUS, config, 5, 3)
    real = pool.unlabelled(range(1), 1)[0]
    written = (*real.turns, Turn("Bo", "what a day"))
    kept = [
        KeptDialogue(n, real.source, turns, ("Ann", "Bo")) for n, turns in enumerate((real.turns, written))
    ]
    taught = {place_of(real.source, real.turns): ("sadness",)}
    found = {o.parent: o.taught for o in pool.draw(1, kept, taught) if o.parent is not None}
    assert found == {0: ("sadness",), 1: None}


def test_an_annotation_that_the_run_reveals_is_taught_in_place_of_the_vote() -> None:
    read = labels_to_teach([recognizer_group(["joy", "joy"], ("anger",))], {}, align=0)
    assert read.labels == (("anger",),)
    assert read.groups[0].taught is None


def test_a_teacher_without_turns_to_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"selfplay.teacher=round_start, but no dialogue without labels"):
        OpeningPool(Corpus("toy", LABELS, tuple(LABELLED)), CONFIG, 5, 3)


votes = st.lists(
    st.dictionaries(st.sampled_from(LABELS), st.floats(0.05, 1), min_size=1, max_size=4), max_size=40
)


@settings(max_examples=50)
@given(votes)
def test_aligned_weights_stay_in_bounds_and_never_fit_worse_than_none(turns: list[dict[str, float]]) -> None:
    shares = {"anger": 0.4, "joy": 0.3, "neutral": 0.3, "sadness": 0.0}
    weights = alignment_weights(turns, shares)
    assert set(weights) == {"anger", "joy", "neutral"}
    assert all(1 / LARGEST_WEIGHT <= weight <= LARGEST_WEIGHT for weight in weights.values())

    def error(by: dict[str, float]) -> float:
        first = Counter(max(vote, key=lambda label: vote[label] * by.get(label, 1.0)) for vote in turns)
        return sum(abs(first[label] / max(1, len(turns)) - shares[label]) for label in weights)

    assert error(weights) <= error({}) + 1e-9


def test_alignment_moves_the_likeliest_label_to_the_wanted_shares() -> None:
    turns = [{"neutral": 0.6, "joy": 0.01 * i} for i in range(50)] * 2
    weights = alignment_weights(turns, {"neutral": 0.5, "joy": 0.5})
    first = Counter(max(vote, key=lambda label: vote[label] * weights[label]) for vote in turns)
    assert first["joy"] == pytest.approx(50, abs=6)
    assert weights["joy"] > 1


def test_a_label_that_alignment_does_not_move_keeps_its_whole_set() -> None:
    groups = [recognizer_group(["joy, anger", "joy, anger"], None), recognizer_group(["neutral"], None)]
    assert labels_to_teach(groups, {"joy": 0.5, "neutral": 0.5}, align=1).labels == (
        ("joy", "anger"),
        ("neutral",),
    )


def test_half_the_alignment_is_the_square_root_of_its_weights() -> None:
    groups = [recognizer_group(["neutral"] * (3 + i) + ["joy"] * 2, None) for i in range(4)]
    shares = {"joy": 0.5, "neutral": 0.5}
    whole, half = (dict(labels_to_teach(groups, shares, align).weights) for align in (1.0, 0.5))
    assert whole["joy"] > 1.2 * whole["neutral"]
    assert half == pytest.approx({label: weight**0.5 for label, weight in whole.items()})


class SureOf(ScriptedGenerator):
    """Gives the labels' first tokens a prompt's probabilities, as an engine that is asked for them does."""

    def __init__(self, probabilities: Callable[[str], Mapping[str, float]]) -> None:
        super().__init__(speak)
        self._probabilities = probabilities

    def _complete(self, request: GenerationRequest) -> Completion:
        found = self._probabilities(CharEncoder().decode(request.prompt_ids))
        by_id = {CharEncoder().encode_completion(label)[0]: log(share) for label, share in found.items()}
        scores = tuple(by_id[token] for token in request.scored_ids)
        return replace(super()._complete(request), scored_logprobs=scores)


def test_votes_by_probability_weigh_each_view_by_how_sure_it_is() -> None:
    def probabilities(prompt: str) -> Mapping[str, float]:
        sure = prompt.startswith("How")
        # half of the plain view's mass is on no label: a view is normalised before it counts
        return dict(zip(LABELS, (0.9, 0.04, 0.04, 0.02) if sure else (0.2, 0.29, 0.005, 0.005), strict=True))

    play, pool, _ = parts()
    openings = pool.unlabelled(range(1), 0)
    by_answer = read_turns(play, openings, 0)
    config = replace(CONFIG, teacher_votes="probabilities")
    sure = read_turns(replace(play, generator=SureOf(probabilities), config=config), openings, 0)
    assert {group.consensus.labels for group in by_answer} == {("joy",)}, "one answer each: the first view's"
    assert {group.consensus.labels for group in sure} == {("anger",)}
    assert dict(sure[0].consensus.shares) == pytest.approx(
        {"anger": 0.65, "joy": 0.31, "neutral": 0.025, "sadness": 0.015}
    )
    assert [group.samples for group in sure] == [group.samples for group in by_answer], "the same answers"
    aligned = labels_to_teach(sure, {"anger": 0.1, "joy": 0.9, "neutral": 0.0, "sadness": 0.0}, align=1)
    assert {labels[0] for labels in aligned.labels} == {"joy"}, "the second label is in the vote as well"


def test_a_view_without_an_answer_still_votes_by_probability_but_a_turn_without_any_teaches_nothing() -> None:
    play, pool, _ = parts()
    generator = SureOf(lambda prompt: dict(zip(LABELS, (0.1, 0.2, 0.3, 0.4), strict=True)))
    generator.script = lambda prompt, request: "joy" if prompt.startswith("How") else "no label"
    config = replace(CONFIG, teacher_votes="probabilities")
    openings = pool.unlabelled(range(1), 1)
    (group,) = read_turns(replace(play, generator=generator, config=config), openings, 0)
    assert group.consensus.labels == ("sadness",)
    generator.script = lambda prompt, request: "no label"
    (group,) = read_turns(replace(play, generator=generator, config=config), openings, 0)
    assert group.consensus.labels == ()


def test_labels_that_begin_alike_have_no_probability_of_their_own() -> None:
    alike = PromptBuilder(CharEncoder(), ("joy", "sadness", "surprise"), 3, 80)
    with pytest.raises(UserError, match=r"begins the labels sadness and surprise with the same token"):
        _ = alike.first_ids
    many = PromptBuilder(CharEncoder(), tuple(chr(0x4E00 + i) for i in range(129)), 3, 80)
    with pytest.raises(UserError, match=r"129 labels, and an engine scores 128 tokens"):
        _ = many.first_ids


def test_a_reply_is_read_as_the_turn_that_it_is_and_names_its_record() -> None:
    play, _, _ = parts()
    reply = Reply(7, "toy/train/0", LABELLED[0].turns[:1], "Bo", ("anger",), "what a mess")
    (group,) = read_turns(play, [reply.opening(9)], 1)
    assert (group.parent, group.episode, group.speaker, group.gold) == (7, 9, "Bo", None)
    assert group.context[-1].text == "what a mess"
    assert not group.is_real_unlabelled
    assert [sample.view for sample in group.samples] == list(CONFIG.views)


@given(st.integers(1, 40), st.data())
def test_rounds_cut_the_iterations_into_parts_that_differ_by_one(
    iterations: int, data: st.DataObject
) -> None:
    rounds = data.draw(st.integers(1, iterations))
    config = load_config(None, [f"iterations={iterations}", f"selfplay.rounds={rounds}"])
    found = [round_of(iteration, config) for iteration in range(iterations)]
    assert all(iteration in part for iteration, part in enumerate(found))
    sizes = [len(part) for part in dict.fromkeys(found)]
    assert len(sizes) == rounds
    assert max(sizes) - min(sizes) <= 1
