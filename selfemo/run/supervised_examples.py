"""Makes the supervised examples of a run: those of the first stage, and those beside every SELF-GRPO step."""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.common.seeds import derive_rng
from selfemo.config.schema import RunConfig
from selfemo.flywheel.lessons import Lesson, Lessons
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.example_dealer import deal_examples
from selfemo.megatron.learner import Batch
from selfemo.selfplay.sft import SftExample, SftExamples
from selfemo.system import System


def labelled_examples(config: RunConfig, system: System) -> SftExamples:
    """Prepare the examples of the training split's labelled turns.

    Raises:
        UserError: no turn to teach from.
    """
    return SftExamples(
        system.corpus.split("train"),
        system.prompts,
        config.selfplay,
        config.seed,
        config.sft.expression_share,
        config.model.max_length,
        config.sft.label_balance,
        config.sft_views,
    )


class StepExamples:
    """The supervised examples of SELF-GRPO steps: labelled turns, and what the flywheel teaches.

    The labelled ones go on where the supervised start stopped. All are pure functions of the step and of the
    flywheel's records.
    """

    def __init__(self, config: RunConfig, system: System, lessons: Lessons) -> None:
        self._config, self._lessons, self._world = config, lessons, system.world
        is_asked = config.algorithm.supervised_weight > 0
        self._labelled = labelled_examples(config, system) if is_asked else None

    def of_step(self, step: int, since: int) -> Batch:
        """Make this rank's examples of one step; none if algorithm.supervised_weight is 0. Collective.

        Args:
            step: number of the optimizer step, from 0 where self-play begins.
            since: the flywheel teaches records from this iteration on.
        """
        config, algorithm, flywheel = self._config, self._config.algorithm, self._config.flywheel
        examples = self._labelled
        if examples is None:
            return ()
        size = algorithm.supervised_batch_size
        wanted = round(size * flywheel.teach_share)
        rng = derive_rng(config.seed, "lessons", step)
        lessons = self._lessons.draw(wanted, flywheel.teach_replies, since, rng) if wanted else []
        first = config.sft.steps * config.sft.batch_size + step * size
        labelled, taught = size - len(lessons), _answers(lessons, flywheel.teach_labels)
        # the loss divides by the number of answers; a turn counts once, however many answers it teaches
        weight = algorithm.supervised_weight * (labelled + len(taught)) / size
        weights = [weight] * labelled + [weight * flywheel.teach_weight * part for _, _, part in taught]

        def make(index: int) -> TrainingSample:
            if index < labelled:
                made = examples.example(first + index)
            else:
                place, labels, _ = taught[index - labelled]
                made = _taught(examples, lessons[place], labels, step, place)
            return TrainingSample(made.prompt_ids, made.completion_ids, weight=weights[index])

        layout, device = self._world.layout, self._world.device.torch_device
        return deal_examples(make, weights, config.train, layout, device)


def _answers(lessons: Sequence[Lesson], most: int) -> list[tuple[int, tuple[str, ...] | None, float]]:
    """List (place of the lesson, labels to answer, share of its weight); None for labels: the lesson's own.

    A single answer each needs no look at the lessons, which are unpacked when they are looked at.
    """
    if most == 1:
        return [(place, None, 1.0) for place in range(len(lessons))]
    return [
        (place, labels, part) for place, lesson in enumerate(lessons) for labels, part in lesson.answers(most)
    ]


def _taught(
    examples: SftExamples, lesson: Lesson, labels: tuple[str, ...] | None, step: int, index: int
) -> SftExample:
    if lesson.role == "recognizer":
        return examples.reading(lesson.turns, labels or lesson.labels, "lesson view", step, index)
    return examples.reply(lesson.turns, lesson.speaker, lesson.labels, lesson.text)
