"""Describe the work of one iteration: generation calls and training samples, with their lengths.

Step time depends on the longest completion as much as on the number of tokens, because a
synchronous step waits for the last sample. Lengths are therefore a distribution: a log-normal body
cut at the cap, and a share of completions that run on to the cap. It is evaluated at evenly spaced
quantiles, so a plan is deterministic.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from selfemo.config.schema import RunConfig
from selfemo.planning.teaching import TeacherReading, teacher_reading

LENGTH_VARIATION = 0.6
"""Standard deviation over mean of the completion lengths in the body."""
RUN_ON_SHARE = 0.01
"""Share of completions that never end their turn and are cut at the cap."""
MEAN_SHARE = 0.6
"""Assumed mean completion length as a share of its cap, if nobody has measured one."""
TURN_TOKENS = 20
"""Assumed mean length of a dialogue turn with its speaker."""
TEMPLATE_TOKENS = 90
"""Assumed length of instructions, label list and chat template around the turns."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of one kind of sample, in tokens."""

    prompt: float
    mean_completion: float
    max_completion: int
    run_on_share: float = RUN_ON_SHARE

    def completions(self, count: int) -> tuple[int, ...]:
        """Draw `count` lengths with this mean and cap, in a fixed shuffled order in which a batch's
        samples arrive."""
        return _quantiles(count, self.mean_completion, self.max_completion, self.run_on_share)

    @property
    def mean_total(self) -> float:
        """Mean length of prompt and completion together."""
        return self.prompt + self.mean_completion

    def padding(self, batch: int) -> float:
        """Ratio of padded to real length if `batch` random samples are padded to their longest; 1
        for a batch of one."""
        if batch == 1:
            return 1.0
        ordered = sorted(_quantiles(512, self.mean_completion, self.max_completion, self.run_on_share))
        # P(longest <= ordered[i]) = ((i + 1) / n) ** batch
        edges = [(i / len(ordered)) ** batch for i in range(len(ordered) + 1)]
        longest = sum(length * (edges[i + 1] - edges[i]) for i, length in enumerate(ordered))
        return (self.prompt + longest) / self.mean_total


@dataclass(frozen=True)
class GenerationCall:
    """One step of all episodes, over all engines."""

    samples: int
    groups: int
    """Distinct prompts: one per group, or per view of it. Samples of one prompt share their prefix in the
    cache."""
    lengths: Lengths


@dataclass(frozen=True)
class Workload:
    """The work of one iteration, over all ranks."""

    calls: tuple[GenerationCall, ...]
    train_samples: int
    lengths: Lengths
    """Mean lengths over the training samples."""
    optimizer_steps: int
    logprob_passes: int
    """Forward passes over the batch besides training: reference policy, old policy."""
    microbatch_tokens: int | None
    """Packed tokens per micro-batch; None for one sample each, nothing packed."""
    logprob_batch: int | None = None
    """Samples per forward pass, padded to the longest; None for packed as in training."""
    head_on_completions_only: bool = True
    """True if the output layer runs on completion tokens alone, as in this project; False if it
    runs on every token."""
    episodes: int = 1
    """Episodes that go through the calls, each at its own pace: the next call of one begins when its own
    share of the last one has ended. 1: the calls follow one another (rollout.lock_step)."""
    trained_share: float = 1.0
    """Share of the training samples whose group carries a ranking; the model does not read the others."""
    supervised_examples: int = 0
    """Supervised examples that each optimizer step also learns from, in micro-batches of their own."""
    supervised_lengths: Lengths | None = None
    """Their lengths; None if there are none."""
    teacher: TeacherReading | None = None
    """What a teacher reads where a round begins; None without one."""

    @property
    def generated_tokens(self) -> float:
        """Completion tokens sampled per iteration, its share of the teacher's answers included."""
        return sum(call.samples * call.lengths.mean_completion for call in self.calls) + self.teacher_tokens

    @property
    def teacher_call(self) -> GenerationCall | None:
        """The engine call in which the teacher reads a round's turns; None without a teacher."""
        if self.teacher is None:
            return None
        # the recognizer's answers, as those of an iteration's first call
        return GenerationCall(self.teacher.answers, self.teacher.answers, self.calls[0].lengths)

    @property
    def teacher_tokens(self) -> float:
        """Completion tokens of the teacher's answers, per iteration."""
        if self.teacher is None:
            return 0.0
        tokens = self.teacher.answers * self.calls[0].lengths.mean_completion
        return tokens * self.teacher.rounds_per_iteration

    @property
    def supervised_tokens(self) -> float:
        """Prompt and completion tokens of the supervised examples, per iteration."""
        if self.supervised_lengths is None:
            return 0.0
        return self.optimizer_steps * self.supervised_examples * self.supervised_lengths.mean_total

    @property
    def trained_samples(self) -> float:
        """Number of training samples that the model reads."""
        return self.train_samples * self.trained_share

    @property
    def train_tokens(self) -> float:
        """Prompt and completion tokens trained on per iteration, supervised examples included."""
        return self.trained_samples * self.lengths.mean_total + self.supervised_tokens


def workload_of(
    config: RunConfig,
    prompt_tokens: float | None = None,
    answer_tokens: float | None = None,
    utterance_tokens: float | None = None,
    unlabelled_turns: int | None = None,
) -> Workload:
    """Describe one self-play iteration of a configuration (selfemo.selfplay.episode).

    Every turn is recognised, answered, and the replies are read.

    Args:
        prompt_tokens, answer_tokens, utterance_tokens: measured means; None assumes them from the
            caps (see the constants above).
        unlabelled_turns: as teacher_reading.
    """
    play, algorithm = config.selfplay, config.algorithm
    turn_tokens = min(TURN_TOKENS, config.corpus.max_turn_tokens)
    prompt = prompt_tokens or min(
        TEMPLATE_TOKENS + (config.corpus.history_turns + 1) * turn_tokens, config.model.max_length
    )
    answer = Lengths(
        prompt, answer_tokens or MEAN_SHARE * play.max_recognizer_tokens, play.max_recognizer_tokens
    )
    reply = Lengths(
        prompt, utterance_tokens or MEAN_SHARE * play.max_utterance_tokens, play.max_utterance_tokens
    )
    seeds, turns = play.seeds_per_iteration, max(1, play.turns)
    recognise = GenerationCall(seeds * play.recognizer_group_size, seeds * len(play.views), answer)
    calls = [recognise]
    if play.turns:
        replies = seeds * play.responder_group_size
        calls = [
            recognise,
            GenerationCall(replies, seeds, reply),
            GenerationCall(replies, replies, answer),
        ] * turns
    answers, utterances = turns * recognise.samples, play.turns * seeds * play.responder_group_size
    mean = (answers * answer.mean_completion + utterances * reply.mean_completion) / (answers + utterances)
    kl_pass = 0 if algorithm.kl_beta == 0 else 1  # null takes the preset's, which may be positive
    is_supervised = algorithm.supervised_weight > 0
    return Workload(
        calls=tuple(calls),
        train_samples=answers + utterances,
        lengths=Lengths(prompt, mean, max(answer.max_completion, reply.max_completion)),
        optimizer_steps=algorithm.updates_per_rollout,
        logprob_passes=kl_pass + (1 if algorithm.updates_per_rollout > 1 else 0),
        microbatch_tokens=config.train.max_tokens_per_microbatch,
        episodes=1 if config.rollout.lock_step else seeds,
        supervised_examples=algorithm.supervised_batch_size if is_supervised else 0,
        supervised_lengths=_supervised_lengths(config, answer, reply) if is_supervised else None,
        teacher=teacher_reading(config, unlabelled_turns),
    )


def _supervised_lengths(config: RunConfig, answer: Lengths, reply: Lengths) -> Lengths:
    """Mean lengths over the supervised examples of both roles: answers without thoughts, and replies."""
    play, flywheel = config.selfplay, config.flywheel
    labels = MEAN_SHARE * play.max_answer_tokens if play.thinking else answer.mean_completion
    # Labelled turns teach replies as in the supervised start; of the kept ones, half are to be written.
    taught = flywheel.teach_share
    replies = (1 - taught) * config.sft.expression_share + taught * flywheel.teach_replies / 2
    # a split vote teaches several answers behind one prompt
    answers = 1 + taught * (1 - flywheel.teach_replies) * (flywheel.teach_labels - 1)
    mean = (1 - replies) * labels * answers + replies * reply.mean_completion
    return Lengths(answer.prompt, mean, max(play.max_answer_tokens, reply.max_completion))


@cache
def _quantiles(count: int, mean: float, cap: int, run_on_share: float) -> tuple[int, ...]:
    run_on = round(count * run_on_share) if mean < cap else 0
    body = count - run_on
    wanted = min(cap, max(1.0, (mean * count - run_on * cap) / max(1, body)))
    low, high = 0.0, 8.0 * cap  # the uncut mean that gives the wanted mean once cut at the cap
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(_body(body, middle, cap)) < wanted * body else (low, middle)
    lengths = [max(1, round(length)) for length in _body(body, high, cap)] + [cap] * run_on
    random.Random(0).shuffle(lengths)
    return tuple(lengths)


def _body(count: int, mean: float, cap: int) -> list[float]:
    sigma = math.sqrt(math.log1p(LENGTH_VARIATION**2))
    centre = math.log(max(mean, 1e-9)) - sigma**2 / 2
    return [min(cap, math.exp(centre + sigma * z)) for z in _normal_quantiles(count)]


@cache
def _normal_quantiles(count: int) -> tuple[float, ...]:
    normal = NormalDist()
    return tuple(normal.inv_cdf((i + 0.5) / count) for i in range(count))
