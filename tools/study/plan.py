"""Reads a study's plan: a YAML file with a base configuration, seeds, a shared SFT start and variants.

All variants of a seed continue the same SFT model, so that a difference between them comes from their
training after it. A variant is a name, a sentence, and overrides: an ablation is one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from selfemo.common.errors import UserError
from tools.study.checks import plan_problems, reader_problems, variant_problems
from tools.study.schema import StudyPlan


def read_plan(path: Path) -> StudyPlan:
    """Read a study file; `extends: FILE` in it takes the fields that it leaves out from a file beside it.

    Raises:
        UserError: not readable, an unknown or missing field, a repeated name, or a name that is no variant.
    """
    tree = _read_yaml(path)
    if isinstance(tree, dict) and "extends" in tree:
        extended = _read_yaml(path.parent / str(tree.pop("extends")))
        tree = {**extended, **tree} if isinstance(extended, dict) else extended
    try:
        plan = TypeAdapter(StudyPlan).validate_python(tree)
    except ValidationError as error:
        raise UserError(
            f"{path}: "
            + "; ".join(f"{'.'.join(map(str, e['loc'])) or 'study'}: {e['msg']}" for e in error.errors())
        ) from None
    if problem := next(variant_problems(plan), None):
        raise UserError(f"{path}: {problem}")
    plan = _resolved(plan)
    if problem := next(plan_problems(plan), None):
        raise UserError(f"{path}: {problem}")
    return plan


def only_seeds(plan: StudyPlan, seeds: Sequence[int]) -> StudyPlan:
    """Return the part of a study that concerns some of its seeds, in the study's order.

    Raises:
        UserError: a seed the study does not have, or one alone whose replies another's start would read.
    """
    known = list(dict.fromkeys(seed for _, held in plan.parts for seed in held))
    unknown = sorted(set(seeds) - set(known))
    if unknown:
        raise UserError(f"--seed {unknown[0]}: the study has seeds {', '.join(map(str, known))}")
    kept = {share: [seed for seed in held if seed in seeds] for share, held in plan.shares.items()}
    part = replace(
        plan,
        seeds=[seed for seed in plan.seeds if seed in seeds],
        shares={share: held for share, held in kept.items() if held},
    )
    if problem := next(reader_problems(part), None):
        raise UserError(f"--seed {seeds[0]}: {problem}")
    return part


def _resolved(plan: StudyPlan) -> StudyPlan:
    """Write out what variants take from others, and leave out those that `only` does not name."""
    by_name = {variant.name: variant.overrides for variant in plan.variants}
    variants = [
        replace(
            variant,
            like="",
            overrides=[
                *by_name.get(variant.like, []),
                *variant.overrides,
                *plan.adjust.get(variant.name, []),
            ],
        )
        for variant in plan.variants
        if not plan.only or variant.name in plan.only
    ]
    return replace(plan, variants=variants)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); examples/configs/study_cpu.yaml is one"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
