"""Test that manifests read back equal, and that nothing else is read."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config.schema import RunConfig, SelfPlayConfig
from selfemo.records.directory import config_changes
from selfemo.records.manifest import Manifest, Position, Progress, decode_manifest, digest_of


def manifest() -> Manifest:
    return Manifest(
        version=1,
        progress=Progress("self-play", 4, 6, 2, 1),
        position=Position(120, 30, 9),
        config={"seed": 1, "train": {"learning_rate": 1e-3}},
        world_size=2,
        architecture={"num_layers": 2},
        corpus="c0",
        reference="r0",
        roles={"recognizer": {"passed": 3, "kept": 2}},
        seconds={"total": 1.5},
        code={"torch": "2.13.0"},
        files={"common.pt": "d0"},
    )


def test_a_manifest_reads_back_equal():
    assert decode_manifest(manifest().encode()) == manifest()


def test_a_configuration_from_a_checkpoint_differs_from_its_own_in_nothing():
    """JSON gives a list where the configuration holds a tuple: every resume would tell of changed views."""
    config = asdict(RunConfig(selfplay=SelfPlayConfig(views=("plain", "short"))))
    stored = decode_manifest(replace(manifest(), config=config).encode()).config
    assert list(config_changes(stored, config)) == []
    other = asdict(RunConfig(selfplay=SelfPlayConfig(views=("plain", "labels"))))
    assert [name for name, _, _ in config_changes(stored, other)] == ["selfplay.views"]


def test_names_and_order_follow_the_run():
    stops = [Progress("sft", 16), Progress("sft", 200), Progress("self-play", 1), Progress("self-play", 12)]
    assert [stop.name for stop in stops] == [
        "sft-000016",
        "sft-000200",
        "iteration-000001",
        "iteration-000012",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"world_size": 0}, "world_size"),
        ({"version": 2}, "manifest version 2"),
        ({"extra": 1}, "extra"),
        ({"progress": {"stage": "elsewhere", "step": 1, "weight_version": 1}}, "progress.stage"),
        ({"files": None}, "files"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused_with_the_reason(change, reason):
    content = json.loads(manifest().encode())["manifest"] | change
    with pytest.raises(ValueError, match=reason):
        decode_manifest(json.dumps({"digest": digest_of(content), "manifest": content}))


def test_a_changed_value_shows():
    with pytest.raises(ValueError, match="changed after it was written"):
        decode_manifest(manifest().encode().replace('"step": 4', '"step": 5'))


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(number):
    """Refuse NaN and infinity at any place.

    Fuzzing found one that read as a number and could not be written again.
    """
    with pytest.raises(ValueError, match=f"{number} is not a finite number"):
        decode_manifest(manifest().encode().replace("1.5", number))


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_anything_else_is_a_value_error(content):
    with pytest.raises(ValueError):
        decode_manifest(content)
