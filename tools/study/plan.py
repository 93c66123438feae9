"""Reads a study's plan: a YAML file with a base configuration, seeds, a shared SFT start and variants.

All variants of a seed continue the same SFT model, so that a difference between them comes from their
training after it. A variant is a name, a sentence, and overrides: an ablation is one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from selfemo.common.errors import UserError

STRICT = ConfigDict(extra="forbid")
START = "start"
"""Name of the shared SFT model among the variants."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=40)]


@dataclass(frozen=True, config=STRICT)
class Variant:
    """One way to train."""

    name: Name
    says: str
    """One sentence for the table."""
    overrides: list[str] = field(default_factory=list)
    """Overrides on top of the base configuration and of `self_play`."""


@dataclass(frozen=True, config=STRICT)
class StudyPlan:
    base: str
    """Configuration file of every run, relative to the study file's directory."""
    seeds: Annotated[list[int], Field(min_length=1)]
    start: list[str]
    """Overrides of the SFT run that all variants of a seed share."""
    self_play: list[str]
    """Overrides of every run that continues the SFT run."""
    variants: Annotated[list[Variant], Field(min_length=1)]
    baselines: list[Name]
    """Variants with which every other one is compared."""
    processes: Annotated[int, Field(gt=0)] = 1
    """Processes per run; parallel.* must fit."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Models are compared on the first N turns of a split; 0 for all."""


def read_plan(path: Path) -> StudyPlan:
    """Read a study file.

    Raises:
        UserError: not readable, an unknown or missing field, a repeated name, or a baseline that is no
            variant.
    """
    try:
        plan = TypeAdapter(StudyPlan).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); examples/configs/study_cpu.yaml is one"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    except ValidationError as error:
        raise UserError(
            f"{path}: "
            + "; ".join(f"{'.'.join(map(str, e['loc'])) or 'study'}: {e['msg']}" for e in error.errors())
        ) from None
    names = [START, *(variant.name for variant in plan.variants)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{path}: variant {name!r} is named twice ({START!r} is the SFT start itself): "
                "give it another name"
            )
    for name in plan.baselines:
        if name not in names:
            raise UserError(f"{path}: baseline {name!r} is not a variant; expected one of {', '.join(names)}")
    return plan


def only_seeds(plan: StudyPlan, seeds: Sequence[int]) -> StudyPlan:
    """Return the part of a study that concerns some of its seeds, in the study's order.

    Raises:
        UserError: a seed the study does not have.
    """
    unknown = sorted(set(seeds) - set(plan.seeds))
    if unknown:
        raise UserError(f"--seed {unknown[0]}: the study has seeds {', '.join(map(str, plan.seeds))}")
    return replace(plan, seeds=[seed for seed in plan.seeds if seed in seeds])
