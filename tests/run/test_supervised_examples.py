"""Test the examples beside a step: what a turn with a split vote teaches, and what that weighs."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from selfemo.config.schema import AlgorithmConfig, FlywheelConfig, RunConfig, SelfPlayConfig, TrainConfig
from selfemo.corpora.conversation import Corpus
from selfemo.flywheel.lessons import Lesson, Lessons
from selfemo.grpo.samples import TrainingSample
from selfemo.run.supervised_examples import StepExamples
from selfemo.selfplay.openings import place_of
from selfemo.selfplay.prompts import PromptBuilder
from tests.helpers.scripted import LABELS, CharEncoder, conversation
from tests.megatron.test_sample_dealer import layout_of_rank

SHOWN = [conversation(str(i), f"Ann[joy]: {i} one", f"Bo[anger]: {i} two") for i in range(3)]
BARE = [conversation(f"bare {i}", f"Ann: bare {i} one") for i in range(4)]
CORPUS = Corpus("toy", LABELS, (*SHOWN, *BARE))
SHARES = (("sadness", 0.6), ("joy", 0.3), ("neutral", 0.1))
WEIGHT, SIZE, TAUGHT, TEACH_WEIGHT = 0.5, 6, 3, 2.0


def _step(teach_labels: int, shares: tuple[tuple[str, float], ...]) -> dict[int, TrainingSample]:
    """Make this rank's examples of one step; four turns are taught, all with the same vote."""
    lessons = Lessons()
    for dialogue in BARE:
        lesson = Lesson("recognizer", dialogue.turns, "Ann", ("sadness",), shares=shares)
        lessons.take_up(0, place_of(dialogue.key, dialogue.turns), lesson)
    config = RunConfig(
        selfplay=SelfPlayConfig(views=("plain", "anonymous", "rephrased")),
        algorithm=AlgorithmConfig(supervised_weight=WEIGHT, supervised_batch_size=SIZE),
        flywheel=FlywheelConfig(
            teach_share=TAUGHT / SIZE, teach_weight=TEACH_WEIGHT, teach_labels=teach_labels
        ),
        train=TrainConfig(max_tokens_per_microbatch=5000),
    )
    world = SimpleNamespace(
        layout=layout_of_rank(dist.get_rank(), dist.get_world_size(), 1),
        device=SimpleNamespace(torch_device=torch.device("cpu")),
    )
    system = SimpleNamespace(corpus=CORPUS, prompts=PromptBuilder(CharEncoder(), LABELS, 3, 80), world=world)
    batch = StepExamples(config, system, lessons).of_step(4, 0)  # type: ignore[arg-type]
    return dict(batch.samples)  # type: ignore[union-attr]


def test_a_single_answer_takes_no_notice_of_the_shares(distributed) -> None:
    ((with_shares,), (without,)) = (distributed(1, _step, 1, shares) for shares in (SHARES, ()))
    assert with_shares == without
    assert len(without) == SIZE
    assert {sample.weight for sample in without.values()} == {WEIGHT, WEIGHT * TEACH_WEIGHT}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_split_vote_teaches_several_answers_that_weigh_one_turn(distributed, ranks: int) -> None:
    made = {n: sample for part in distributed(ranks, _step, 3, SHARES) for n, sample in part.items()}
    answers = SIZE - TAUGHT + 3 * TAUGHT
    assert len(made) == answers
    # the loss is the weighted sum over the number of answers: a turn must weigh as with a single answer
    total = sum(sample.weight for sample in made.values()) / answers
    assert total == pytest.approx(WEIGHT * (SIZE - TAUGHT + TEACH_WEIGHT * TAUGHT) / SIZE)
    by_prompt: dict[tuple[int, ...], dict[str, float]] = defaultdict(dict)
    for number in sorted(made)[SIZE - TAUGHT :]:
        sample = made[number]
        by_prompt[sample.prompt_ids][CharEncoder().decode(sample.completion_ids)] = sample.weight
    assert len(by_prompt) == TAUGHT, "the answers of a turn share its view, and so its prompt"
    whole = WEIGHT * TEACH_WEIGHT * answers / SIZE
    for weights in by_prompt.values():
        assert weights == {label: pytest.approx(whole * part) for label, part in SHARES}
