"""Defines the types that several sections of the configuration share: bounded numbers, and names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from selfemo.config.text import expand_path, expand_paths

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
PathText = Annotated[str, AfterValidator(expand_path)]
"""A path; a leading ~ is the home directory."""
PathList = Annotated[str, AfterValidator(expand_paths)]
"""Names or paths, separated by commas."""
Dtype = Literal["auto", "float32", "bfloat16"]
"""selfemo.config.dtype settles "auto" as a configuration is loaded: a run has one of the other two."""
CorpusName = str
"""A reader of selfemo.corpora.readers, or "auto". selfemo.config.checks compares it with the registry."""
ViewName = str
"""A view of selfemo.selfplay.views. That package imports this one, so selfemo.commands.preflight compares."""
LossName = str
"""Name of a preset of selfemo.kernels.config."""
