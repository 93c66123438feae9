"""Checks the fields of a study's plan against each other, before a run starts."""

from __future__ import annotations

from collections.abc import Iterator

from selfemo.common.errors import UserError
from selfemo.selfplay.views import parse_views
from tools.study.schema import START, StudyPlan


def variant_problems(plan: StudyPlan) -> Iterator[str]:
    """Yield a sentence for every variant that cannot be, alone or beside the others."""
    names = plan.names
    for name in names:
        if names.count(name) > 1:
            yield (
                f"variant {name!r} is named twice ({START!r} is the SFT start itself): give it another name"
            )
    alone = [variant.name for variant in plan.variants if not variant.like]
    for variant in plan.variants:
        if variant.like and variant.like not in alone:
            yield (
                f"variant {variant.name!r} is like {variant.like!r}: expected a variant that is "
                f"like no other, one of {', '.join(alone)}"
            )
        if variant.untrained and (variant.overrides or variant.like or variant.minutes or not variant.views):
            yield (
                f"variant {variant.name!r} is untrained: expected views that vote, and no overrides, like or "
                "minutes, since its model is the start"
            )
        if variant.untrained and variant.name in plan.adjust:
            yield f"adjust: {variant.name!r} is untrained, there is nothing to adjust: name trained variants"
        try:
            parse_views(",".join(variant.views), f"variant {variant.name!r}: views")
        except UserError as error:
            yield str(error)
    for what, named in (("only", plan.only), ("adjust", plan.adjust)):
        for name in named:
            if name not in names[1:]:
                yield f"{what}: {name!r} is not a variant; expected of {', '.join(names[1:])}"


def plan_problems(plan: StudyPlan) -> Iterator[str]:
    """Yield a sentence for every name that is no variant of the study, and for seeds that it cannot have."""
    names = plan.names
    lists = {
        "baseline": plan.baselines,
        "main:": plan.main,
        "curve:": plan.curve,
        "calibrated:": plan.calibrated,
    }
    for what, named in lists.items():
        for name in named:
            if name not in names:
                yield f"{what} {name!r} is not a variant; expected one of {', '.join(names)}"
    if bool(plan.seeds) == bool(plan.shares):
        yield "expected seeds, or shares with the seeds of each labelled share: name one of the two"
    for share, seeds in plan.parts:
        place = "seeds" if share is None else f"shares: {share}"
        if not seeds:
            yield f"{place}: expected at least one seed"
        if len(set(seeds)) < len(seeds):
            yield f"{place}: a seed is named twice"
    for variant in plan.variants:
        if variant.untrained and variant.name in plan.calibrated:
            yield (
                f"calibrated: {variant.name!r} is untrained, its answers are votes already: name trained ones"
            )
    if plan.calibrated and not plan.votes:
        yield "calibrated names variants, but votes=0 samples no answers: set votes to 2 or more"
    if plan.votes == 1:
        yield "votes=1: a single answer votes for itself; expected 2 or more, or 0 to leave calibration out"
    if plan.main_share is not None and not plan.main:
        yield f"main_share={plan.main_share} is the share of no comparison: name its variants in main"
    if plan.main_share is not None and plan.main_share not in plan.shares:
        known = ", ".join(map(str, plan.shares)) or "none, since shares is empty"
        yield f"main_share={plan.main_share} is not a labelled share of the study; expected of {known}"
    yield from reader_problems(plan)


def reader_problems(plan: StudyPlan) -> Iterator[str]:
    """Yield a sentence for every labelled share at which no other seed's start can read replies."""
    if plan.reader == "next_start":
        for share, seeds in plan.parts:
            if len(seeds) == 1:
                place = "the study" if share is None else f"labelled share {share}"
                yield (
                    f"reader=next_start lets the start of another seed read replies, and {place} has seed "
                    f"{seeds[0]} alone: name two"
                )
