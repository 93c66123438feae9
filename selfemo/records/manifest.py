"""Defines a checkpoint's manifest: the run's progress, and everything else about it but its tensors.

Everything random in a run derives from seeds and coordinates (selfemo.common.seeds), so the place in the
corpus and in every draw is a pure function of `Progress`, and no cursor is stored. Files that grow during a
run are described by their lengths (`Position`); a resume cuts them back to these. A manifest is JSON, read
strictly: if a field is too many, missing or of a wrong type, the manifest is damaged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from selfemo.config.types import STRICT

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES = 64 << 20
"""Largest manifest that is read. A real one has some hundred bytes per file and rank."""

Stage = Literal["start", "sft", "self-play"]
"""In the order of a run."""
CHECKPOINT_KINDS = tuple("iteration" if stage == "self-play" else stage for stage in get_args(Stage)[1:])
"""Prefixes of checkpoint names, by stage, in the order of a run; at the start there is nothing to save."""
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Progress:
    """Progress of a run: `step` SFT steps or self-play iterations of `stage` are done."""

    stage: Stage = "start"
    step: Count = 0
    weight_version: Count = 0
    """Number of the last weight sync."""
    skipped_steps: Count = 0
    """Optimizer steps skipped because loss or gradient was not finite."""
    skipped_in_a_row: Count = 0
    """Steps skipped since the last one that was applied."""

    def after_sync(self) -> Progress:
        """Return the progress with one more weight sync."""
        return dataclasses.replace(self, weight_version=self.weight_version + 1)

    def after_step(self, applied: bool) -> Progress:
        """Return the progress with one more optimizer step, counted as skipped unless `applied`."""
        if applied:
            return dataclasses.replace(self, skipped_in_a_row=0)
        skipped, in_a_row = self.skipped_steps + 1, self.skipped_in_a_row + 1
        return dataclasses.replace(self, skipped_steps=skipped, skipped_in_a_row=in_a_row)

    @property
    def name(self) -> str:
        """Name of a checkpoint made here; names sort in the order of a run within a stage."""
        return f"{'iteration' if self.stage in ('start', 'self-play') else self.stage}-{self.step:06d}"


@dataclass(frozen=True, config=STRICT)
class Position:
    """Lengths of the run's records."""

    metrics_bytes: Count = 0
    samples_bytes: Count = 0
    flywheel_records: Count = 0
    """Greatest record id in the flywheel."""


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """The manifest of one checkpoint."""

    version: Literal[1]
    progress: Progress
    position: Position
    config: dict[str, Any]
    """The run's whole configuration."""
    world_size: Annotated[int, Field(gt=0)]
    architecture: dict[str, Any]
    corpus: str
    """Digest of the corpus."""
    reference: str
    """Digest of the reference weights of self-play; empty if no later step needs them."""
    roles: dict[str, dict[str, Count]]
    """Per role: groups that passed the flywheel's rule, and groups kept."""
    seconds: dict[str, Seconds]
    """Time spent so far, by phase."""
    code: dict[str, str]
    """Versions of selfemo and of the libraries that compute, and a digest of selfemo's source."""
    files: dict[str, str]
    """Digest of every other file of the checkpoint, by its name."""
    round: Count = 0
    """Number of the round whose reference weights these are, from 0."""

    def encode(self) -> str:
        """Write the manifest as JSON, with a digest of itself."""
        content = json.loads(_ADAPTER.dump_json(self))
        return (
            json.dumps({"digest": digest_of(content), "manifest": content}, indent=1, ensure_ascii=False)
            + "\n"
        )


_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def decode_manifest(text: str | bytes) -> Manifest:
    """Parse and check a manifest file's content.

    Raises:
        ValueError: it is damaged, or of another version; says where in a few words.
    """
    try:
        envelope = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(envelope, dict) or not isinstance(envelope.get("manifest"), dict):
        raise ValueError("not a manifest")
    content = envelope["manifest"]
    if content.get("version") != MANIFEST_VERSION:
        raise ValueError(f"manifest version {content.get('version')!r}, expected {MANIFEST_VERSION}")
    if envelope.get("digest") != digest_of(content):
        raise ValueError("its digest differs: it was changed after it was written")
    try:
        return _ADAPTER.validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _finite(number: str) -> float:
    """Parse a finite number; JSON's 1e999 and Python's NaN and Infinity are refused.

    A manifest that holds one could not be written again.
    """
    if not math.isfinite(float(number)):
        raise ValueError(f"{number[:20]} is not a finite number")
    return float(number)


def digest_of(content: Any) -> str:
    """Hash plain values, independent of the order of keys."""
    return hashlib.blake2b(
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        digest_size=16,
    ).hexdigest()
