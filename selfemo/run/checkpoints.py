"""Writes a run's checkpoints, and finds the newest good one to resume from.

A checkpoint is a directory that appears whole or not at all, with a digest of every file.

    checkpoints/
      iteration-000004/     tensors (megatron/checkpoint.py), rng-00000.safetensors of each rank,
                            manifest.json (records/manifest.py)
      reference/            the SFT weights, the reference of self-play, stored once
      reference-001/        the reference of its second round, if it has one
      latest                the name of the newest; it moves last

A checkpoint is written under a temporary name that no other attempt shares (a writer that outlives a kill
cannot touch it), flushed to disk, and renamed. On a resume every file is hashed before any is read; a
checkpoint with a file that does not match is reported and skipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from selfemo.common.errors import UserError, on_all_ranks
from selfemo.common.files import fsync_directory, replace_text
from selfemo.megatron.checkpoint import TensorWrite, read_snapshot, read_tensors, write_snapshot
from selfemo.megatron.learner import Learner
from selfemo.megatron.rng import restore_rng, save_rng
from selfemo.process import watchdog
from selfemo.process.collectives import fail_together, on_rank0
from selfemo.records.directory import CHECKPOINT_NAME
from selfemo.records.manifest import (
    CHECKPOINT_KINDS,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    decode_manifest,
    digest_of,
)

LATEST_NAME = "latest"
REFERENCE_NAME = "reference"
DIGEST_BYTES = 16
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Found:
    """The checkpoint to resume from, and the newer ones that are damaged."""

    directory: Path
    manifest: Manifest
    damaged: tuple[str, ...]
    """One line per newer checkpoint that is not good."""


def reference_name(number: int) -> str:
    """Name the directory of a round's reference weights."""
    return f"{REFERENCE_NAME}-{number:03d}" if number else REFERENCE_NAME


class Checkpoints:
    """Writes a run's checkpoints. Every method is collective."""

    def __init__(self, root: Path, learner: Learner, keep: int, in_background: bool) -> None:
        self._root, self._learner, self._keep, self._in_background = root, learner, keep, in_background
        self._pending: tuple[TensorWrite, Path, Path, Manifest] | None = None

    def save(self, manifest: Manifest, generators: Mapping[str, torch.Tensor], wait: bool = False) -> None:
        """Write a checkpoint of the present state; in the background if configured, unless `wait`.

        Args:
            manifest: every field but `files`.
            generators: this rank's, from `collect_rng`, as they were at the place in the run that the
                manifest names.

        Raises:
            UserError: it cannot be written (a full disk, a directory that is not writable); the checkpoints
                there are untouched.
        """
        self.finish()
        final = self._root / manifest.progress.name
        common = {"weight_version": manifest.progress.weight_version, "iteration": manifest.progress.step}
        with watchdog.doing(f"generators of {final.name}"):
            temporary = _new_temporary(final)
            fail_together(self._save_rng(temporary, generators))
        with watchdog.doing(f"tensors of {final.name}"):
            write = TensorWrite(
                self._learner, temporary, common, in_background=self._in_background and not wait
            )
        self._pending = (write, temporary, final, manifest)
        if wait or not self._in_background:
            self.finish()

    def poll(self) -> None:
        """Complete the checkpoint under way if its tensors have been written by now."""
        if self._pending is None:
            return
        with watchdog.doing(f"state of the writer of {self._pending[2].name}"):
            is_done = self._pending[0].is_done()
        if is_done:
            self.finish()

    def finish(self) -> None:
        """Complete the checkpoint under way, if there is one.

        In this order: digests, manifest, its name, `latest`, removal of older ones.
        """
        if self._pending is None:
            return
        write, temporary, final, manifest = self._pending
        self._pending = None
        with watchdog.doing(f"writer of {final.name}"):
            write.is_done(blocking=True)
        with watchdog.doing(f"digests of {final.name}"):
            files = _written(temporary)
        with watchdog.doing(f"name of {final.name}"):
            _commit(temporary, final, dataclasses.replace(manifest, files=files).encode(), make_latest=True)
        with watchdog.doing(f"removal of checkpoints before {final.name}"):
            on_rank0(lambda: _prune(self._root, self._keep))

    def save_reference(self, snapshot: Sequence[torch.Tensor], number: int) -> str:
        """Store the reference weights of a round; returns their digest."""
        self.finish()
        final = self._root / reference_name(number)
        temporary = _new_temporary(final)
        with watchdog.doing("tensors of the reference weights"):
            write_snapshot(self._learner, snapshot, temporary)
        with watchdog.doing("digests of the reference weights"):
            files = _written(temporary)
            _commit(temporary, final)
        return digest_of(files)

    def _save_rng(self, directory: Path, generators: Mapping[str, torch.Tensor]) -> str:
        try:
            save_rng(directory / _rng_name(dist.get_rank()), generators)
        except (OSError, SafetensorError) as error:
            return (
                f"{self._root}: a checkpoint cannot be written ({error}): "
                "free space or make it writable, then run again"
            )
        return ""

    def load(self, found: Found) -> list[torch.Tensor] | None:
        """Load weights and optimizer from a checkpoint.

        Returns:
            the reference weights, if the manifest names some; else None.

        Raises:
            UserError: it does not fit this model.
        """
        reference = (
            read_snapshot(self._learner, self._root / reference_name(found.manifest.round))
            if found.manifest.reference
            else None
        )
        read_tensors(self._learner, found.directory)
        return reference

    def restore_generators(self, found: Found) -> None:
        """Restore this rank's random generators, if the checkpoint has some for it.

        Call it last, since building a run may draw from them.
        """
        own = found.directory / _rng_name(dist.get_rank())
        if found.manifest.world_size == dist.get_world_size() and own.is_file():
            restore_rng(own, self._learner.device.torch_device)


def find_checkpoint(root: Path, problem_with: Callable[[Manifest], str]) -> Found | None:
    """Find the newest good checkpoint; None if none was ever completed.

    Collective: every rank hashes its share of the files.

    Args:
        problem_with: why a run cannot go on from a checkpoint although it is whole; "" if it can. Asked on
            rank 0.

    Raises:
        UserError: there are checkpoints, and none of them is good.
    """
    names = on_rank0(lambda: [path.name for path in completed(root)])
    damaged: list[str] = []
    for name in names:
        directory = root / name
        manifest, problem = on_rank0(partial(_read_manifest, directory, problem_with))
        if manifest is not None:
            problem = _file_problem(directory, manifest.files) or _reference_problem(
                root / reference_name(manifest.round), manifest.reference
            )
            if not problem:
                return Found(directory, manifest, tuple(damaged))
        damaged.append(f"{directory}: {problem}")
    if damaged:
        remedy = f"restore one, or remove {root.parent} to start over"
        raise on_all_ranks(UserError(f"no good checkpoint to resume from: {'; '.join(damaged)}: {remedy}"))
    return None


def completed(root: Path) -> list[Path]:
    """List checkpoints up to the one that `latest` names (all of them if it names none), newest first."""
    found = sorted(
        (path for path in root.glob("*-*") if path.is_dir() and CHECKPOINT_NAME.fullmatch(path.name)),
        key=_order,
        reverse=True,
    )
    try:
        name = (root / LATEST_NAME).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    names = [path.name for path in found]
    return found[names.index(name) :] if name in names else found


def _order(path: Path) -> tuple[int, int]:
    kind, _, step = path.name.rpartition("-")
    return (CHECKPOINT_KINDS.index(kind), int(step))


def remove_temporaries(root: Path) -> None:
    """Remove the files that an interrupted write left."""
    for path in root.glob(".*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _read_manifest(directory: Path, problem_with: Callable[[Manifest], str]) -> tuple[Manifest | None, str]:
    path = directory / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return None, f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes"
        manifest = decode_manifest(path.read_bytes())
    except OSError as error:
        return None, f"{MANIFEST_NAME} cannot be read ({error.strerror})"
    except ValueError as error:
        return None, f"{MANIFEST_NAME}: {error}"
    if manifest.progress.name != directory.name:
        return None, f"its manifest is that of {manifest.progress.name}"
    present = {path.name for path in directory.iterdir()} - {MANIFEST_NAME}
    odd = sorted(present ^ set(manifest.files))
    if odd:
        return None, f"{odd[0]} is {'missing' if odd[0] in manifest.files else 'not part of it'}"
    problem = problem_with(manifest)
    return (None, problem) if problem else (manifest, "")


def _file_problem(directory: Path, wanted: dict[str, str]) -> str:
    found = _digests(directory, sorted(wanted))
    odd = next((name for name in wanted if found[name] != wanted[name]), "")
    return (
        odd
        and f"{odd} "
        f"{'cannot be read ' + found[odd] if found[odd].startswith('(') else 'is not what was written'}"
    )


def _reference_problem(directory: Path, digest: str) -> str:
    if not digest:
        return ""
    if not on_rank0(directory.is_dir):
        return f"the reference weights are missing ({directory})"
    return (
        ""
        if digest_of(_digests(directory)) == digest
        else f"the reference weights are not those it was made with ({directory})"
    )


def _written(directory: Path) -> dict[str, str]:
    """Hash the files that were just written."""
    files = _digests(directory)
    for name, digest in files.items():
        if digest.startswith("("):
            line = (
                f"{directory.parent}: {name} of a checkpoint cannot be read back {digest}: "
                "check the disk, then run again"
            )
            raise on_all_ranks(UserError(line))
    return files


def _new_temporary(final: Path) -> Path:
    """Make an empty directory that every rank knows, under a name that nobody has used."""

    def make() -> Path:
        temporary = _hidden(final)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            remove_temporaries(final.parent)
            temporary.mkdir()
        except OSError as error:
            raise UserError(_unwritable(final.parent, error)) from None
        return temporary

    return on_rank0(make)


def _hidden(path: Path) -> Path:
    """Make a unique name beside `path`, which no reader takes for a checkpoint."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}.safetensors"


def _unwritable(root: Path, error: OSError) -> str:
    return (
        f"{root}: a checkpoint cannot be written ({error.strerror}): "
        "free space or make it writable, then run again"
    )


def _commit(temporary: Path, final: Path, manifest: str = "", make_latest: bool = False) -> None:
    """Give a complete directory its name, then set `latest`.

    Each step reaches the disk before the next begins.
    """

    def commit() -> None:
        try:
            if manifest:
                replace_text(temporary / MANIFEST_NAME, manifest)
            fsync_directory(temporary)
            if final.exists():  # a damaged one, or one of a part of the run that was rewound
                os.replace(final, _hidden(final))
            _rename(temporary, final)
            if make_latest:
                replace_text(final.with_name(LATEST_NAME), final.name + "\n")
                fsync_directory(final.parent)
        except OSError as error:
            raise UserError(_unwritable(final.parent, error)) from None

    on_rank0(commit)


def _rename(temporary: Path, final: Path) -> None:
    os.replace(temporary, final)
    fsync_directory(final.parent)


def _prune(root: Path, keep: int) -> None:
    """Remove all but the newest.

    Each gets a hidden name first, so that no half-removed directory bears a checkpoint's name.
    """
    checkpoints = completed(root)
    for old in checkpoints[keep:]:
        os.replace(old, _hidden(old))
    rounds = {_read_round(path / MANIFEST_NAME) for path in checkpoints[:keep]}
    needed = {reference_name(number) for number in rounds if number is not None}
    for reference in root.glob(f"{REFERENCE_NAME}*"):
        if None not in rounds and reference.name not in needed:
            os.replace(reference, _hidden(reference))
    remove_temporaries(root)


def _read_round(manifest: Path) -> int | None:
    """Return the round of a checkpoint; None if its manifest is damaged."""
    try:
        return decode_manifest(manifest.read_bytes()).round
    except (OSError, ValueError):
        return None


def _digests(directory: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """Hash every file (of `names`, or all); one rank hashes it and flushes it to disk. Collective.

    If a file cannot be read, the reason stands in place of its digest, in parentheses.
    """
    names = names or on_rank0(lambda: sorted(path.name for path in directory.iterdir()))
    mine = {name: _digest(directory / name) for name in names[dist.get_rank() :: dist.get_world_size()]}
    shares: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, mine)
    return dict(sorted((name, digest) for share in shares for name, digest in share.items()))


def _digest(path: Path) -> str:
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                found.update(block)
            os.fsync(file.fileno())
    except OSError as error:
        return f"({error.strerror})"
    return found.hexdigest()
