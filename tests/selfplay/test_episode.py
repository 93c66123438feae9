"""Test the episode loop with a generator that answers from a script: phases, roles, targets, seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfemo.common.errors import UserError
from selfemo.config.schema import SelfPlayConfig
from selfemo.emotions.affinity import identity_affinity
from selfemo.emotions.answer import Answer, FormatFailure
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.rollout.api import GenerationRequest, Session
from selfemo.selfplay.episode import SelfPlay, first_speakers, sample_seed
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.records import Episode, Opening
from selfemo.selfplay.transitions import TransitionPrior
from tests.helpers.scripted import LABELS, THINK, CharEncoder, Script, ScriptedGenerator, conversation, turns

TRANSITIONS = TransitionPrior.estimate([conversation("1", "A[joy]: x", "B[sadness]: y", "A[joy]: z")])
CONFIG = SelfPlayConfig(
    turns=2, recognizer_group_size=3, responder_group_size=2, max_answer_tokens=20, max_utterance_tokens=60
)
OPENING = Opening(
    0,
    "toy/train/7",
    turns("Ann[joy]: we won", "Bo[joy]: yes we did"),
    turns("Ann[anger]: so what")[0],
    None,
    ("Ann", "Bo"),
)


def respond_or_recognise(prompt: str, request: GenerationRequest) -> str:
    """Answer as a responder whose first sample reads as intended and whose others read as neutral."""
    last = prompt.splitlines()[-1]
    if prompt.startswith("Write"):
        wanted = prompt.split("showing ")[1].split(".")[0]
        return (
            f"tone {LABELS.index(wanted.split(', ')[0])} it is"
            if request.seed % 2
            else f"flat line number {request.seed % 97}"
        )
    if "tone" in last:
        return LABELS[int(last.split("tone ")[1][0])]
    return "joy" if "did" in last else "neutral"


def play(
    openings: list[Opening],
    config: SelfPlayConfig = CONFIG,
    script: Script = respond_or_recognise,
    iteration: int = 4,
    session: Session | None = None,
) -> tuple[list[Episode], ScriptedGenerator]:
    generator = ScriptedGenerator(script)
    score = SmoothedIoU(identity_affinity(LABELS), 0.05)
    selfplay = SelfPlay(
        generator,
        PromptBuilder(CharEncoder(), LABELS, 3, 80, config.thinking),
        score,
        TRANSITIONS,
        config,
        run_seed=11,
    )
    return selfplay.play(openings, iteration, session), generator


def test_an_episode_alternates_roles_and_speakers() -> None:
    (episode,), _ = play([OPENING])
    assert [(g.role, g.turn, g.speaker, len(g.samples)) for g in episode.groups] == [
        ("recognizer", 0, "Bo", 3),
        ("responder", 0, "Ann", 2),
        ("recognizer", 1, "Ann", 3),
        ("responder", 1, "Bo", 2),
    ]
    assert [turn.speaker for turn in episode.turns] == ["Ann", "Bo", "Ann", "Bo"]


def test_gold_belongs_to_the_opening_and_the_target_to_its_next_turn() -> None:
    (episode,), _ = play([OPENING])
    first, reply, second, later = episode.groups
    assert (first.gold, first.target) == (("joy",), None)
    assert reply.target == ("anger",), "annotation of the opening's next turn"
    assert (second.gold, second.target) == (None, ("anger",)), "nobody annotated a generated turn"
    assert later.target in TRANSITIONS.sets
    assert episode.turns[2].labels == ()


def test_every_phase_is_one_call_over_all_live_episodes() -> None:
    openings = [replace(OPENING, index=i) for i in range(5)]
    _, generator = play(openings)
    assert [len(call) for call in generator.calls[:2]] == [15, 10]
    assert len(generator.calls) == 6
    assert all(request.temperature == 0 for request in generator.calls[2]), "replies are read greedily"


def test_replies_are_read_without_knowledge_of_the_target() -> None:
    _, generator = play([OPENING])
    for request in generator.calls[2]:
        prompt = CharEncoder().decode(request.prompt_ids)
        assert prompt.startswith("Which of")
        assert "showing" not in prompt


def test_the_best_reply_is_appended() -> None:
    openings = [replace(OPENING, index=i) for i in range(8)]
    episodes, _ = play(openings)
    for episode in episodes:
        group = episode.groups[1]
        read_right = [sample.text for sample in group.samples if sample.reading == Answer(("anger",))]
        assert episode.turns[2].text == (read_right or [group.samples[0].text])[0]


def test_gated_replies_are_not_read_and_an_episode_without_a_reply_ends() -> None:
    def leak(prompt: str, request: GenerationRequest) -> str:
        return "such anger in me" if prompt.startswith("Write") else "joy"

    (episode,), generator = play([OPENING], script=leak)
    assert [g.role for g in episode.groups] == ["recognizer", "responder"]
    assert all(sample.gates == ("leak",) and sample.reading is None for sample in episode.groups[1].samples)
    assert len(generator.calls) == 2
    assert episode.turns == OPENING.turns
    assert episode.groups[1].consensus.answers == 0


def test_understanding_only_plays_one_recognizer_phase() -> None:
    (episode,), generator = play([OPENING], replace(CONFIG, turns=0))
    assert [g.role for g in episode.groups] == ["recognizer"]
    assert len(generator.calls) == 1


def test_samples_depend_on_their_coordinates_alone() -> None:
    openings = [replace(OPENING, index=i) for i in range(4)]
    together, _ = play(openings)
    apart = [play([opening])[0][0] for opening in reversed(openings)]
    assert together == list(reversed(apart)), "however episodes are dealt over ranks"
    request_seeds = [s.seed for e in together for g in e.groups for s in g.samples]
    assert len(set(request_seeds)) == len(request_seeds)
    assert together[2].groups[1].samples[1].seed == sample_seed(11, 4, 2, 0, "responder", 1)
    assert play(openings, iteration=5)[0] != together


def test_sampled_ids_are_kept_as_they_came() -> None:
    (episode,), generator = play([OPENING])
    sample = episode.groups[0].samples[0]
    assert sample.prompt_ids == generator.calls[0][0].prompt_ids
    assert CharEncoder().decode(sample.completion_ids) == sample.text
    assert len(sample.rollout_logprobs) == len(sample.completion_ids)


def test_a_cut_answer_is_a_format_failure() -> None:
    (episode,), _ = play([OPENING], replace(CONFIG, turns=0, max_answer_tokens=3))
    assert {s.reading for s in episode.groups[0].samples} == {FormatFailure("cut", "joy")}


def test_with_thinking_the_recognizer_thinks_in_its_own_room_and_the_responder_does_not() -> None:
    def think(prompt: str, request: GenerationRequest) -> str:
        answer = respond_or_recognise(prompt, request)
        return (
            answer
            if prompt.startswith("Write")
            else f"<think>\n{'hm' * (request.seed % 3)}\n</think>\n\n{answer}"
        )

    config = replace(CONFIG, thinking=True, max_thinking_tokens=30)
    (episode,), generator = play([OPENING], config, think)
    plain, _ = play([OPENING])
    assert [[s.reading for s in g.samples] for g in episode.groups] == [
        [s.reading for s in g.samples] for g in plain[0].groups
    ]
    assert [turn.text for turn in episode.turns] == [turn.text for turn in plain[0].turns], (
        "thoughts are read past, never said"
    )
    recognised, replies, scored = generator.calls[:3]
    assert {r.max_tokens for r in (*recognised, *scored)} == {20 + 30}
    assert {r.max_tokens for r in replies} == {60}
    assert all(r.prompt_ids[-1] == THINK for r in (*recognised, *scored))
    assert not any(r.prompt_ids[-1] == THINK for r in replies)
    sample = episode.groups[0].samples[0]
    assert CharEncoder().decode(sample.completion_ids) == sample.text, (
        "the thoughts are trained on as they were sampled"
    )

    (cut,), _ = play(
        [OPENING],
        replace(config, turns=0, max_thinking_tokens=1),
        lambda p, r: "<think>" + "hm" * 20 + "</think>joy",
    )
    assert {s.reading.reason for s in cut.groups[0].samples if isinstance(s.reading, FormatFailure)} == {
        "cut"
    }


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        (OPENING, ("Ann", "Bo")),
        (replace(OPENING, next_turn=turns("Bo[joy]: more")[0]), ("Ann", "Bo")),
        (replace(OPENING, next_turn=turns("Cy: hi")[0]), ("Cy", "Bo")),
        (Opening(0, "s", turns("Bo: x"), None, None, ("Bo", "Di")), ("Di", "Bo")),
        (Opening(0, "s", turns("Bo: x"), None, None, ("Bo",)), ("Someone", "Bo")),
    ],
)
def test_who_replies(opening: Opening, expected: tuple[str, str]) -> None:
    assert first_speakers(opening) == expected


def test_the_same_speaker_going_on_is_no_annotation_for_the_reply() -> None:
    (episode,), _ = play([replace(OPENING, next_turn=turns("Bo[anger]: more")[0])])
    assert episode.groups[1].target in TRANSITIONS.sets


def test_no_opening_needs_no_generator() -> None:
    episodes, generator = play([])
    assert episodes == []
    assert generator.calls == []


def test_turns_need_transitions() -> None:
    empty = TransitionPrior.estimate([])
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    with pytest.raises(UserError, match=r"set selfplay\.turns=0"):
        SelfPlay(
            ScriptedGenerator(respond_or_recognise),
            prompts,
            SmoothedIoU(identity_affinity(LABELS), 0.0),
            empty,
            CONFIG,
            1,
        )
