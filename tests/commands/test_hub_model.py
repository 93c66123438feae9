"""Test model.path as a name on the hub: what a dry run fetches and records, and which rank fetches."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config.load import as_yaml, load_config
from selfemo.config.schema import CorpusConfig, ModelConfig, RunConfig
from tests.helpers.fake_hub import FakeHub, fake_hub

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "a" * 40, "b" * 40
SHAPE = ModelConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=2
)


def dry_run(hub: FakeHub, tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("selfemo")), "train", "--dry-run", "corpus.name=everyday"]
    settings = ["model.path=Org/tiny", "model.max_length=512", f"output_dir={tmp_path / 'run'}", *overrides]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**inherited, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    return subprocess.run(
        [*command, *settings],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_dry_run_fetches_a_name_and_a_run_keeps_its_commit(tmp_path: Path) -> None:
    from selfemo.tokens.init_model import init_model

    with fake_hub() as hub:
        model = init_model(tmp_path / "tiny", SHAPE, ["some words"] * 9, seed=1)
        hub.publish("Org/tiny", model, FIRST)
        fetched = dry_run(hub, tmp_path)
        assert fetched.returncode == 0, fetched.stderr
        assert f"model Org/tiny@{FIRST}" in fetched.stdout
        (snapshot,) = (tmp_path / "home").rglob("snapshots/*")
        assert (snapshot / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()

        recorded = load_config(None, ["corpus.name=everyday", "model.max_length=512"])
        recorded = replace(
            recorded,
            model=replace(recorded.model, path=f"Org/tiny@{FIRST}"),
            output_dir=str(tmp_path / "run"),
        )
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text(as_yaml(recorded))
        hub.publish("Org/tiny", model, SECOND)  # main moves
        kept = dry_run(hub, tmp_path)
        assert kept.returncode == 0, kept.stderr
        assert f"model Org/tiny@{FIRST}" in kept.stdout
        moved = dry_run(hub, tmp_path, "model.path=Org/tiny@main")
        assert moved.returncode == 2
        assert "holds a run with another configuration (other model.path" in moved.stderr

        unknown = dry_run(hub, tmp_path, "model.path=Org/none")
        assert unknown.returncode == 2
        assert re.fullmatch(
            r"selfemo: Org/none: no such directory here, and the hub knows no such model.*\n", unknown.stderr
        )


def _fetched(path_by_rank: list[str], local_ranks: list[str]) -> tuple[str, list[str]]:
    """Return the path that this rank goes on with, and what it fetched."""
    import torch.distributed as dist

    from selfemo import system

    fetched: list[str] = []
    system.fetch, fetch = lambda path: fetched.append(path) or Path(path), system.fetch
    os.environ["LOCAL_RANK"] = local_ranks[dist.get_rank()]
    try:
        config = RunConfig(corpus=CorpusConfig(name="everyday"))
        config = replace(config, model=replace(config.model, path=path_by_rank[dist.get_rank()]))
        return system.with_fetched_model(config).model.path, fetched
    finally:
        system.fetch = fetch


def test_one_rank_of_each_node_fetches_what_rank_0_pinned(distributed) -> None:
    pinned = f"Org/tiny@{FIRST}"
    one_node = distributed(2, _fetched, [pinned, "Org/tiny"], ["0", "1"])
    assert one_node == [(pinned, [pinned]), (pinned, [])]
    two_nodes = distributed(2, _fetched, [pinned, "Org/tiny"], ["0", "0"])
    assert two_nodes == [(pinned, [pinned]), (pinned, [pinned])]
    assert distributed(2, _fetched, ["", ""], ["0", "1"]) == [("", []), ("", [])]
