"""Fuzz a checkpoint's manifest, with a digest that fits again so that the fields behind it are read."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from selfemo.common.errors import UserError
from selfemo.config.schema import RunConfig
from selfemo.records.manifest import Manifest, Position, Progress, decode_manifest, digest_of
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens

SOUND = Manifest(
    version=1,
    progress=Progress("self-play", 4, 5, 0),
    position=Position(120, 340, 17),
    config={"seed": RunConfig().seed, "sft": dataclasses.asdict(RunConfig().sft)},
    world_size=2,
    architecture={"num_layers": 3},
    corpus="c0ffee",
    reference="",
    roles={"recognizer": {"passed": 9, "kept": 4}},
    seconds={"sft": 1.5},
    code={"torch": "2.13.0"},
    files={"rng-00000.safetensors": "00"},
)
TOKENS = [f'"{field.name}": '.encode() for field in dataclasses.fields(Manifest)] + [
    b'"step": ',
    b'"manifest": ',
    b'"digest": ',
    b'"../x"',
]


def read(content: bytes) -> Manifest:
    """Read a manifest as selfemo.run.checkpoints does, which turns ValueError into a damaged checkpoint."""
    try:
        return decode_manifest(content)
    except ValueError as error:
        raise UserError(str(error)) from None


@fuzz
def test_checkpoint_manifest(seed: int, tally: Tally) -> None:
    for rng in tally.batch(seed):
        content = (
            damaged(rng, [SOUND.encode().encode()], TOKENS, most=2)
            if rng.random() < 0.9
            else of_tokens(rng, TOKENS)
        )
        if rng.random() < 0.7:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                manifest = json.loads(content)["manifest"]
                content = json.dumps({"digest": digest_of(manifest), "manifest": manifest}).encode()
        found = tally.try_input(lambda: read(content), content)  # noqa: B023
        if isinstance(found, Manifest):
            assert decode_manifest(found.encode()) == found
