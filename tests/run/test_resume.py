"""Test the message of a resume about changes since its checkpoint was made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import selfemo
from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.records.content import corpus_digest
from selfemo.run.resume import changes, code_versions, source_digest
from tests.helpers.hidden_labels import PLANTED, config_for, write_corpus
from tests.run.test_checkpoints import EMPTY

CONFIG = RunConfig()
MANIFEST = dataclasses.replace(EMPTY, config=dataclasses.asdict(CONFIG), code=code_versions())


def test_the_same_code_is_no_change():
    assert list(changes(MANIFEST, CONFIG, 1)) == []


def test_other_code_is_told_by_what_is_other():
    code = code_versions()
    other = dataclasses.replace(MANIFEST, code={**code, "source": "0f", "vllm": "0.1"})
    assert list(changes(other, CONFIG, 1)) == [
        f"vllm 0.1 -> {code['vllm']}",
        f"source 0f -> {code['source']}",
    ]


def test_a_checkpoint_from_before_the_source_was_recorded_can_be_told_too():
    code = {name: version for name, version in code_versions().items() if name != "source"}
    assert list(changes(dataclasses.replace(MANIFEST, code=code), CONFIG, 1)) == [
        f"source None -> {code_versions()['source']}"
    ]


def test_the_source_digest_knows_every_module_and_no_more(tmp_path):
    package, kernels = tmp_path / "package", tmp_path / "kernels"
    for place in (package / "room", kernels):
        place.mkdir(parents=True)
        (place / "module.py").write_text("one = 1\n")
    (package / "kernels").symlink_to(kernels)  # as in a checkout
    found = [source_digest(package)]
    (package / "room" / "module.pyc").write_text("compiled")
    assert source_digest(package) == found[0]
    for change in (
        lambda: (package / "room" / "module.py").write_text("one = 2\n"),
        lambda: (kernels / "module.py").write_text("one = 2\n"),
        lambda: (package / "room" / "module.py").rename(package / "room" / "renamed.py"),
        lambda: (package / "__init__.py").touch(),
    ):
        change()
        found.append(source_digest(package))
    assert len(set(found)) == len(found)


def test_the_digest_of_a_checkpoint_is_that_of_this_package():
    assert code_versions()["source"] == source_digest(Path(selfemo.__file__).parent)


def test_the_corpus_digest_knows_what_the_run_sees(tmp_path):
    """Two files that differ in hidden labels alone are one corpus to a run, unless it reveals them."""
    roots = [write_corpus(tmp_path / label, label) for label in (PLANTED, "neutral")]
    hidden, revealed, other_draw = (
        [corpus_digest(load_run_corpus(config_for(root, **corpus))) for root in roots]
        for corpus in ({}, {"reveal_hidden": True}, {"labelled_share": 0.5})
    )
    assert hidden[0] == hidden[1]
    assert len({hidden[0], *revealed, *other_draw}) == 5
