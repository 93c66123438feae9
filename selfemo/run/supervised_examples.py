"""Makes the supervised examples of a run: those of the first stage, and those beside every SELF-GRPO step."""

from __future__ import annotations

from selfemo.common.seeds import derive_rng
from selfemo.config.schema import RunConfig
from selfemo.flywheel.lessons import Lesson, Lessons
from selfemo.grpo.samples import TrainingSample
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
        self._config, self._lessons = config, lessons
        is_asked = config.algorithm.supervised_weight > 0
        self._labelled = labelled_examples(config, system) if is_asked else None

    def of_step(self, step: int, since: int) -> list[TrainingSample]:
        """Make the examples of one step, with their weights; none if algorithm.supervised_weight is 0.

        Args:
            step: number of the optimizer step, from 0 where self-play begins.
            since: the flywheel teaches records from this iteration on.
        """
        config, algorithm, flywheel = self._config, self._config.algorithm, self._config.flywheel
        examples = self._labelled
        if examples is None:
            return []
        size = algorithm.supervised_batch_size
        wanted = round(size * flywheel.teach_share)
        rng = derive_rng(config.seed, "lessons", step)
        lessons = self._lessons.draw(wanted, flywheel.teach_replies, since, rng) if wanted else []
        first = config.sft.steps * config.sft.batch_size + step * size
        labelled = [examples.example(first + i) for i in range(size - len(lessons))]
        taught = [_taught(examples, lesson, step, i) for i, lesson in enumerate(lessons)]
        weight = algorithm.supervised_weight
        return [TrainingSample(e.prompt_ids, e.completion_ids, weight=weight) for e in labelled] + [
            TrainingSample(e.prompt_ids, e.completion_ids, weight=weight * flywheel.teach_weight)
            for e in taught
        ]


def _taught(examples: SftExamples, lesson: Lesson, step: int, index: int) -> SftExample:
    if lesson.role == "recognizer":
        return examples.reading(lesson.turns, lesson.labels, "lesson view", step, index)
    return examples.reply(lesson.turns, lesson.speaker, lesson.labels, lesson.text)
