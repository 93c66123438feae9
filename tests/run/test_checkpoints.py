"""Test the choice of the checkpoint to resume from: the newest that is whole, and the messages on
the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.records.manifest import MANIFEST_NAME, Manifest, Position, Progress
from selfemo.run.checkpoints import Found, completed, find_checkpoint
from tests.helpers.watched import calls_told

EMPTY = Manifest(
    version=1,
    progress=Progress(),
    position=Position(),
    config={},
    world_size=1,
    architecture={},
    corpus="",
    reference="",
    roles={},
    seconds={},
    code={},
    files={},
)


def write(root: Path, step: int, reference: str = "") -> Path:
    """Write a checkpoint of two files that no model needs to read."""
    import hashlib

    progress = Progress("self-play", step, step + 2)
    directory = root / progress.name
    directory.mkdir(parents=True)
    files = {}
    for name in ("weights.distcp", "common.pt"):
        content = f"{name} of {step}".encode() * 100
        (directory / name).write_bytes(content)
        files[name] = hashlib.blake2b(content, digest_size=16).hexdigest()
    (directory / MANIFEST_NAME).write_text(
        replace(EMPTY, progress=progress, files=files, reference=reference).encode()
    )
    (root / "latest").write_text(progress.name + "\n")
    return directory


def _find(root: str, refused: str = "") -> Found | str | None:
    """Search in a process group of one."""
    try:
        return find_checkpoint(Path(root), lambda manifest: refused if manifest.progress.step == 3 else "")
    except UserError as error:
        return str(error)


@pytest.fixture
def found(distributed, tmp_path) -> Callable[..., Found | str | None]:
    return lambda *refused: distributed(1, _find, str(tmp_path), *refused)[0]


def test_none_where_none_was_ever_completed(found, tmp_path):
    (tmp_path / ".iteration-000001.0f").mkdir()
    assert found() is None


def test_the_newest_is_found(found, tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    assert (found().directory.name, found().damaged) == ("iteration-000003", ())


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (
        lambda d: (d / "common.pt").write_bytes(b"?" + (d / "common.pt").read_bytes()[1:]),
        "common.pt is not what was written",
    ),
    "a truncated file": (
        lambda d: (d / "weights.distcp").write_bytes(b"weights"),
        "weights.distcp is not what was written",
    ),
    "a missing file": (lambda d: (d / "weights.distcp").unlink(), "weights.distcp is missing"),
    "a file too many": (lambda d: (d / "more").touch(), "more is not part of it"),
    "no manifest": (lambda d: (d / MANIFEST_NAME).unlink(), "manifest.json cannot be read"),
    "half a manifest": (lambda d: (d / MANIFEST_NAME).write_text('{"digest":'), "manifest.json: not JSON"),
    "a directory for a file": (
        lambda d: ((d / "common.pt").unlink(), (d / "common.pt").mkdir()),
        "common.pt cannot be read",
    ),
    "another's name": (
        lambda d: d.rename(d.with_name("iteration-000007")),
        "its manifest is that of iteration-000003",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_told_and_passed_over(found, tmp_path, kind):
    damage, said = DAMAGE[kind]
    write(tmp_path, 2)
    damage(write(tmp_path, 3))
    answer = found()
    assert answer.directory.name == "iteration-000002"
    assert len(answer.damaged) == 1
    assert said in answer.damaged[0]


def test_a_run_that_cannot_go_on_from_it_passes_it_over_too(found, tmp_path):
    write(tmp_path, 2)
    write(tmp_path, 3)
    assert "of another model" in found("of another model").damaged[0]


def test_missing_reference_weights_are_damage(found, tmp_path):
    write(tmp_path, 2)
    write(tmp_path, 3, reference="0f")
    assert "reference weights are missing" in found().damaged[0]


def test_none_good_is_an_error_and_not_a_fresh_start(found, tmp_path):
    (write(tmp_path, 1) / "common.pt").unlink()
    assert "no good checkpoint to resume from" in found()
    assert "common.pt is missing" in found()


def test_latest_decides_which_are_complete(tmp_path):
    """Rename a directory without moving `latest`.

    The run was interrupted there, and the older checkpoint counts.
    """
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / "latest").write_text("iteration-000002\n")
    assert [path.name for path in completed(tmp_path)] == ["iteration-000002", "iteration-000001"]
    (tmp_path / "latest").write_bytes(b"\xff\xfe")
    assert len(completed(tmp_path)) == 3


class WrittenTensors:
    """Takes the place of the learner's tensors."""

    def __init__(self, learner: object, directory: Path, common: object, **options: object) -> None:
        (directory / "weights.distcp").write_bytes(b"weights")

    def is_done(self, blocking: bool = False) -> bool:
        return True


def _calls_of_a_write(root: str) -> list[str]:
    from selfemo.run import checkpoints

    tensor_write, checkpoints.TensorWrite = checkpoints.TensorWrite, WrittenTensors
    try:
        with calls_told() as told:
            written = checkpoints.Checkpoints(Path(root), None, 2, True)
            written.poll()
            written.save(replace(EMPTY, progress=Progress("sft", 1)), {})
            written.poll()
    finally:
        checkpoints.TensorWrite = tensor_write
    return told


def test_every_part_of_a_write_has_a_name_and_a_deadline_of_its_own(distributed, tmp_path):
    assert distributed(1, _calls_of_a_write, str(tmp_path))[0] == [
        "generators of sft-000001",
        "",
        "tensors of sft-000001",
        "",
        "state of the writer of sft-000001",
        "",
        "writer of sft-000001",
        "",
        "digests of sft-000001",
        "",
        "name of sft-000001",
        "",
        "removal of checkpoints before sft-000001",
        "",
    ]
    assert [path.name for path in completed(tmp_path)] == ["sft-000001"]
