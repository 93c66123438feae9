"""Fuzz a checkpoint's manifest, with a digest that fits again, what names it, and its generators' states."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from selfemo.common.errors import UserError
from selfemo.config.schema import RunConfig
from selfemo.megatron.rng import collect_rng, restore_rng
from selfemo.records.manifest import Manifest, Position, Progress, decode_manifest, digest_of
from selfemo.run.checkpoints import LATEST_NAME, completed
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
POINTER_TOKENS = [b"iteration-000004", b"sft-000002", b"reference", b"."]


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


@fuzz
def test_newest_checkpoint(seed: int, tally: Tally, scratch: Path) -> None:
    """Damage `latest`, which names a checkpoint: what is found are the checkpoints that there are."""
    names = ["iteration-000004", "iteration-000002", "sft-000002"]
    for name in (*names, "reference", ".iteration-000006.0a"):
        (scratch / name).mkdir(exist_ok=True)
    for rng in tally.batch(seed):
        content = damaged(rng, [b"iteration-000002\n", b"sft-000002\n"], POINTER_TOKENS)
        (scratch / LATEST_NAME).write_bytes(content)
        found = tally.try_input(functools.partial(completed, scratch), content)
        assert [path.name for path in found] in [names[start:] for start in range(3)]  # type: ignore[union-attr]


@pytest.fixture
def generators(tmp_path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Copy the states of this process's generators, and restore them at the end."""
    states = collect_rng(torch.device("cpu"))
    yield states
    (tmp_path / "before").write_bytes(save(states))
    restore_rng(tmp_path / "before", torch.device("cpu"))


@fuzz
def test_generator_states(
    seed: int, tally: Tally, scratch: Path, generators: dict[str, torch.Tensor]
) -> None:
    """Damage the file of a rank's generators, or give one of them another state: all of them can draw."""
    device, path = torch.device("cpu"), scratch / "rng-00000.safetensors"
    sound = generators | {"megatron.model-parallel-rng": generators["torch"].clone()}
    whole = save(sound)
    odd = [torch.tensor(3.0), torch.zeros(0), torch.full((3,), 1e9), torch.full((626,), -1), torch.ones(624)]
    for rng in tally.batch(seed):
        if rng.random() < 0.5:
            content = damaged(rng, [whole], [b'"F64"', b'"I64"', b'"shape":', b"[0]", b"\xff" * 8])
        else:
            name = rng.choice(list(sound))
            content = save(sound | {name: rng.choice(odd).to(rng.choice((sound[name].dtype, torch.float32)))})
        path.write_bytes(content)
        tally.try_input(functools.partial(restore_rng, path, device), content[:2000])
        assert 0 <= random.random() < 1
        assert 0 <= np.random.random_sample() < 1
        assert 0 <= float(torch.rand(())) < 1


def test_a_position_beyond_the_words_is_refused(scratch: Path, generators: dict[str, torch.Tensor]) -> None:
    """numpy does not check it, and would read memory behind the words."""
    path = scratch / "rng-00000.safetensors"
    path.write_bytes(save(generators | {"numpy.rest": torch.tensor([100_000, 0, 0], dtype=torch.float64)}))
    with pytest.raises(UserError, match=r"not the states of a rank's generators .*: restore the checkpoint"):
        restore_rng(path, torch.device("cpu"))


def test_restored_states_do_not_hang_on_the_file(scratch: Path, generators: dict[str, torch.Tensor]) -> None:
    """Found by `make fuzz`: a state that stays a view of its file is a bus error once the file is cut."""
    path = scratch / "rng-00000.safetensors"
    name = "megatron.model-parallel-rng"
    state = torch.arange(5000, dtype=torch.uint8)
    path.write_bytes(save(generators | {name: state}))
    restore_rng(path, torch.device("cpu"))
    path.write_bytes(b"")
    assert torch.equal(collect_rng(torch.device("cpu"))[name], state)
