"""Fuzz the small files of a run's directory: inputs, draw of dialogues, lock.

A launch reads them before it changes anything.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Corpus
from selfemo.models.architecture import INDEX_NAME
from selfemo.process import run_owner, watchdog
from selfemo.process.run_lock import find_owner, held
from selfemo.process.run_owner import Owner
from selfemo.records.directory import LOCK_NAME, TRAINING_DIALOGUES_NAME, RunDirectory
from selfemo.records.inputs import INPUTS_NAME, check_inputs, read_inputs, record_inputs, same_inputs
from selfemo.records.training_dialogues import record_training_dialogues, training_dialogues
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens
from tests.helpers.hidden_labels import CONFIG
from tests.helpers.scripted import LABELS, conversation

CORPUS = Corpus("toy", LABELS, tuple(conversation(str(i), f"Ann[joy]: line {i}") for i in range(3)))
INPUT_TOKENS = [b'"model": ', b'"corpus": ', b'"config.json": ', b'"dialogues": ', b'"weight_map": ', b'"."']
DRAW_TOKENS = [
    *(b'"labelled": ', b'"unlabelled": ', b'"counts": ', b'"labelled_turns": ', b'"seed": '),
    *(b'"toy/train/1"', b'"x": null, '),
]
OWNER_TOKENS = [f'"{name}": '.encode() for name in Owner.__dataclass_fields__] + [b'"\\u001b]0;x"', b"-7"]


@fuzz
def test_run_inputs(seed: int, tally: Tally, scratch: Path) -> None:
    """Damage the digests, or the model's index that says which files are digested."""
    model = scratch / "model"
    model.mkdir(exist_ok=True)
    config = replace(CONFIG, model=replace(CONFIG.model, path=str(model)))
    index = b'{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}'
    (scratch / INPUTS_NAME).unlink(missing_ok=True)
    for name, data in (("config.json", b"{}"), (INDEX_NAME, index), ("a.safetensors", bytes(100))):
        (model / name).write_bytes(data)
    record_inputs(scratch, config, CORPUS)
    sound = {scratch / INPUTS_NAME: (scratch / INPUTS_NAME).read_bytes(), model / INDEX_NAME: index}
    recorded = read_inputs(scratch)
    assert recorded
    assert set(recorded["model"]) == {"config.json", "a.safetensors"}

    def check() -> bool:
        list(same_inputs(scratch, {"model.path": ("elsewhere", str(model))}, config))
        return check_inputs(scratch, config, CORPUS)

    for rng in tally.batch(seed):
        path = rng.choice(list(sound))
        content = (
            damaged(rng, [sound[path]], INPUT_TOKENS) if rng.random() < 0.9 else of_tokens(rng, INPUT_TOKENS)
        )
        path.write_bytes(content)
        found = tally.try_input(check, content)
        if not isinstance(found, UserError):
            now = read_inputs(scratch)
            assert now
            assert (now["model"], now["corpus"]) == (recorded["model"], recorded["corpus"])
        path.write_bytes(sound[path])


@fuzz
def test_training_dialogues(seed: int, tally: Tally, scratch: Path) -> None:
    path, wanted = scratch / TRAINING_DIALOGUES_NAME, training_dialogues(CORPUS, CONFIG)
    sound = [json.dumps(wanted).encode()]
    for rng in tally.batch(seed):
        content = damaged(rng, sound, DRAW_TOKENS) if rng.random() < 0.9 else of_tokens(rng, DRAW_TOKENS)
        path.write_bytes(content)
        read = functools.partial(record_training_dialogues, RunDirectory(scratch), CORPUS, CONFIG)
        found = tally.try_input(read, content)
        assert isinstance(found, UserError) or json.loads(content) == wanted


@fuzz
def test_run_lock_record(seed: int, tally: Tally, scratch: Path) -> None:
    """Read a lock that nobody holds: a launch is told in printable words who left it."""
    here, path = watchdog.this_process(), scratch / LOCK_NAME
    owners = [
        Owner("node7", machine, pid, started, "2026-11-29T18:00:00+00:00", "a" * 32)
        for machine, pid, started in ((here.host, os.getpid(), here.started), ("boot pid:[1]", 7, "8"))
    ]
    sound = [json.dumps(asdict(owner)).encode().ljust(run_owner.RECORD_BYTES) for owner in owners]
    told: list[str] = []

    def find() -> None:
        assert find_owner(scratch, told.append) is None, "nobody holds the lock"
        owner = run_owner.read_settled(path)
        if owner and run_owner.is_alive(path, owner, locks_work=False, say=told.append):
            raise held(scratch, owner)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("LEASE_S", "SETTLE_S", "POLL_S"):
            patch.setattr(run_owner, name, 0.0)
        for rng in tally.batch(seed):
            content = (
                damaged(rng, sound, OWNER_TOKENS) if rng.random() < 0.9 else of_tokens(rng, OWNER_TOKENS)
            )
            path.write_bytes(content)
            tally.try_input(find, content)
            assert all(line.isprintable() for line in (*told, str(run_owner.read_owner(path))))
            told.clear()
