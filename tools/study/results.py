"""Turns the answers of a study into its tables: figures of every model, means over seeds, differences.

Intervals and p-values are drawn over seeds and dialogues together, the same ones for both sides of a
difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from selfemo.emotions.labels import NEUTRAL
from selfemo.evaluation.intervals import METRICS, RESAMPLES, seeded_bootstrap, seeded_p_values
from selfemo.evaluation.metrics import classify
from tools.study.answers import ModelAnswers, SplitAnswers
from tools.study.runs import StudyRun
from tools.study.schema import START, StudyPlan
from tools.study.tables import (
    EVERY,
    FAILURES,
    MINUTES,
    NEUTRAL_SHARE,
    SEPARATOR,
    TRAINING,
    Arm,
    Comparison,
    Split,
    Tables,
    Value,
)

BOOTSTRAP_SEED = 1
MAIN_RESAMPLES = 20_000
"""Resamples of the main comparison. Six tests are corrected: 2,000 would know p = 0.008 to 0.003 only."""
MAIN_METRICS = ("accuracy", "weighted_f1")
"""Measures of the main comparison."""
FURTHER = ("siou", NEUTRAL_SHARE, "label_entropy", "calibration", "agreement", "expression")
"""Fields of ModelAnswers that are measures, without an interval."""


def tables_of(
    plan: StudyPlan,
    trained: Sequence[StudyRun],
    answers: Mapping[str, Mapping[float | None, SplitAnswers]],
    evaluated: str,
) -> Tables:
    """Compute the tables of a study from its answers, by split and labelled share.

    Args:
        evaluated: when the test split was evaluated.
    """
    parts = [(share, of_share) for split in answers.values() for share, of_share in split.items()]
    main_share = plan.parts[0][0] if plan.main_share is None else plan.main_share
    values: list[Value] = minutes_of(trained)
    comparisons: list[Comparison] = []
    for share, of_share in parts:
        main = plan.main if share == main_share else []
        values += values_of(of_share, share)
        comparisons += means_of(of_share, share, plan.names)
        comparisons += differences_of(of_share, share, plan.names, plan.baselines, main)
    splits = [
        split_of(next(iter(split.values())), evaluated if name == "test" else "")
        for name, split in answers.items()
    ]
    return Tables(tuple(arms_of(plan)), tuple(splits), tuple(values), tuple(comparisons))


def arms_of(plan: StudyPlan) -> list[Arm]:
    """Describe what all variants share, the start, and every variant, with the overrides that make it."""
    curve = plan.curve or plan.main
    lines = [
        (EVERY, "continues the start", [*plan.settings, *plan.self_play]),
        (START, "the SFT start", [*plan.settings, *plan.start]),
        *(
            (v.name, v.says, [f"views={','.join(v.views)}"] if v.untrained else v.overrides)
            for v in plan.variants
        ),
    ]
    return [Arm(name, says, SEPARATOR.join(settings), name in curve) for name, says, settings in lines]


def split_of(answers: SplitAnswers, evaluated: str = "") -> Split:
    """Describe the turns that were asked about."""
    turns, dialogues = len(answers.gold), len(set(answers.dialogues))
    neutral = answers.gold.count(NEUTRAL) / turns
    return Split(answers.split, answers.corpus, turns, dialogues, neutral, evaluated)


def minutes_of(runs: Sequence[StudyRun]) -> list[Value]:
    """List the CPU minutes of every run."""
    return [Value(run.share, run.seed, run.variant, TRAINING, MINUTES, run.minutes) for run in runs]


def values_of(answers: SplitAnswers, share: float | None) -> Iterator[Value]:
    """Yield every measure of every model, and the CPU minutes of asking it."""
    for model in answers.models:
        figures = classify(answers.gold, model.predicted, answers.labels)
        found = {name: getattr(figures, name) for name in (*METRICS, FAILURES)}
        found |= {name: getattr(model, name) for name in FURTHER if getattr(model, name) is not None}
        found |= {MINUTES: model.seconds / 60} if model.seconds else {}
        for measure, value in found.items():
            yield Value(share, model.seed, model.variant, answers.split, measure, value)


def means_of(answers: SplitAnswers, share: float | None, variants: Sequence[str]) -> Iterator[Comparison]:
    """Yield accuracy, weighted F1 and macro F1 of every variant, averaged over seeds, with intervals."""
    for name in variants:
        predictions = _predictions(answers.of(name))
        for interval in seeded_bootstrap(answers.gold, predictions, None, answers.dialogues, BOOTSTRAP_SEED):
            yield Comparison(
                share, name, "", answers.split, interval.metric, interval.value, interval.low, interval.high
            )


def differences_of(
    answers: SplitAnswers,
    share: float | None,
    variants: Sequence[str],
    baselines: Sequence[str],
    main: Sequence[str] = (),
) -> list[Comparison]:
    """Compare every variant with every baseline but itself.

    Args:
        main: variants whose differences in MAIN_METRICS are one family: Holm's correction is over them all.
    """
    rows = []
    for baseline in baselines:
        theirs = _predictions(answers.of(baseline))
        for name in variants:
            if name != baseline:
                asked = (answers.gold, _predictions(answers.of(name)), theirs, answers.dialogues)
                resamples = MAIN_RESAMPLES if name in main else RESAMPLES
                intervals = seeded_bootstrap(*asked, BOOTSTRAP_SEED, resamples)
                p_values = seeded_p_values(*asked, BOOTSTRAP_SEED, resamples)
                for i, p in zip(intervals, p_values, strict=True):
                    rows.append(
                        Comparison(share, name, baseline, answers.split, i.metric, i.value, i.low, i.high, p)
                    )
    family = [at for at, row in enumerate(rows) if row.variant in main and row.measure in MAIN_METRICS]
    corrected = holm([rows[at].p or 0.0 for at in family])
    for place, p in zip(family, corrected, strict=True):
        rows[place] = replace(rows[place], holm=p)
    return rows


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of one family (Holm 1979): reject those at most 0.05, and the chance of any false
    rejection is at most 0.05.
    """
    count, largest = len(p_values), 0.0
    corrected = [0.0] * count
    for rank, i in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _predictions(models: Sequence[ModelAnswers]) -> list[tuple[str, ...]]:
    return [model.predicted for model in models]
