"""Test names on the hub against a server on loopback: what is fetched, pinned, kept and refused.

huggingface_hub reads its environment as it is imported, so every question is asked in a new process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfemo.models.architecture import architecture_by_name, hf_config
from selfemo.models.hub import HubName, hub_name, local_directory, published_name
from tests.helpers.fake_hub import FakeHub, fake_hub

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """Serve Org/tiny: `main` is the second commit, `old` the first."""
    with fake_hub() as running:
        for commit, branch, layers in ((FIRST, "old", 1), (SECOND, "main", 2)):
            directory = tmp_path / commit
            (directory / "onnx").mkdir(parents=True)
            config = hf_config(architecture_by_name("qwen3-0.6b")) | {"num_hidden_layers": layers}
            (directory / "config.json").write_text(json.dumps(config))
            for name in ("model.safetensors", "tokenizer.json", "README.md", "onnx/model.safetensors"):
                (directory / name).write_text(f"{name} of {commit}")
            running.publish("Org/tiny", directory, commit, branch)
        yield running


def ask(hub: FakeHub, tmp_path: Path, expression: str, **environment: str) -> str:
    """Evaluate an expression over selfemo.models.hub; returns what it prints, or the error's line."""
    program = (
        "from selfemo.models.hub import *\nfrom selfemo.common.errors import UserError\n"
        f"try:\n    print({expression})\nexcept UserError as error:\n    print('refused', error)\n"
    )
    given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**inherited, **given, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-8B", HubName("Qwen/Qwen3-8B", "")),
        ("Qwen/Qwen3-8B@v1.0", HubName("Qwen/Qwen3-8B", "v1.0")),
        ("Qwen/Qwen3-8B@refs/pr/3", HubName("Qwen/Qwen3-8B", "refs/pr/3")),
        ("Qwen/Qwen3-8B/", HubName("Qwen/Qwen3-8B", "")),
        ("https://huggingface.co/Qwen/Qwen3-8B", HubName("Qwen/Qwen3-8B", "")),
        ("https:/huggingface.co/Qwen/Qwen3-8B/tree/v1.0", HubName("Qwen/Qwen3-8B", "v1.0")),
        ("https://hf.co/Qwen/Qwen3-8B/blob/main/config.json", HubName("Qwen/Qwen3-8B", "main")),
        ("hf://Qwen/Qwen3-8B@v1.0", HubName("Qwen/Qwen3-8B", "v1.0")),
        ("https://huggingface.co/Qwen", None),
        ("https://example.org/Qwen/Qwen3-8B", None),
        ("models/Qwen3-8B", None),
        ("runs/demo", None),
        ("./Qwen/Qwen3-8B", None),
        ("/models/Qwen3-8B", None),
        ("~/Qwen3-8B", None),
        ("../Qwen3-8B", None),
        ("a/b/c", None),
        ("Qwen3-8B", None),
        ("here/model", None),
        (f"{'a' * 300}/model", None),
        ("", None),
    ],
)
def test_a_name_is_told_from_a_path(
    path: str, name: HubName | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()  # a path below a directory is a path, whether it exists or not
    monkeypatch.chdir(tmp_path)
    assert hub_name(path) == name


@pytest.mark.parametrize("pointed", [b"../../..", b"\xff", b""])
def test_what_the_cache_cannot_say_is_a_path(
    pointed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that the hub forbids, and a branch of the cache that points to no commit."""
    pointer = tmp_path / "models--Org--tiny" / "refs" / "main"
    pointer.parent.mkdir(parents=True)
    (tmp_path / "models--Org--tiny" / "snapshots").mkdir()
    pointer.write_bytes(pointed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for path in ("Org/tiny", "Org--s/tiny", "Org/tiny.git"):
        assert local_directory(path) == Path(path)


def test_the_published_name_has_no_revision() -> None:
    assert published_name("Qwen/Qwen3-8B@main") == published_name("models/Qwen3-8B") == "Qwen3-8B"
    assert published_name("https://huggingface.co/Qwen/Qwen3-8B/tree/main") == "Qwen3-8B"


@pytest.mark.long
def test_a_name_is_pinned_fetched_and_then_found_without_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    assert ask(hub, tmp_path, "local_directory('Org/tiny')") == "Org/tiny"
    assert ask(hub, tmp_path, "pinned('Org/tiny')") == f"Org/tiny@{SECOND}"
    directory = Path(ask(hub, tmp_path, f"fetch('Org/tiny@{SECOND}')"))
    assert directory.is_relative_to(tmp_path / "home")
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (directory / "model.safetensors").read_text() == f"model.safetensors of {SECOND}"
    hub.asked.clear()
    assert ask(hub, tmp_path, f"local_directory('Org/tiny@{SECOND}')") == str(directory)
    assert hub.asked == []
    assert ask(hub, tmp_path, "fetch('Org/tiny')", HF_HUB_OFFLINE="1") == str(directory)
    assert ask(hub, tmp_path, "pinned('Org/tiny')", HF_HUB_OFFLINE="1") == f"Org/tiny@{SECOND}"
    assert hub.asked == []


def test_a_revision_that_is_asked_for_wins_over_the_recorded_one(hub: FakeHub, tmp_path: Path) -> None:
    recorded = f"Org/tiny@{FIRST}"
    assert ask(hub, tmp_path, f"pinned('Org/tiny', '{recorded}')") == recorded  # though main has moved
    assert hub.asked == []
    assert ask(hub, tmp_path, f"pinned('Org/tiny@main', '{recorded}')") == f"Org/tiny@{SECOND}"
    assert ask(hub, tmp_path, f"pinned('Org/tiny@old', 'Org/other@{SECOND}')") == recorded


def test_a_token_is_sent(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    assert "another HF_TOKEN" in ask(hub, tmp_path, "pinned('Org/tiny')")
    assert ask(hub, tmp_path, "pinned('Org/tiny')", HF_TOKEN="hf_secret") == f"Org/tiny@{SECOND}"


@pytest.mark.parametrize(
    ("expression", "environment", "told"),
    [
        ("pinned('Org/none')", {}, "the hub knows no such model"),
        ("pinned('Org/tiny@v9')", {}, "the hub has no revision v9 of it"),
        ("fetch('Org/none')", {}, "the hub knows no such model"),
        ("pinned('Org/tiny')", {"HF_HUB_OFFLINE": "1"}, "the hub cannot be asked for it"),
        ("fetch('Org/tiny')", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be asked for it"),
    ],
)
def test_what_cannot_be_fetched_is_one_line_with_the_local_way(
    hub: FakeHub, tmp_path: Path, expression: str, environment: dict[str, str], told: str
) -> None:
    line = ask(hub, tmp_path, expression, **environment)
    assert line.startswith("refused Org/")
    assert told in line
    assert "`hf download Org/" in line
    assert "\n" not in line
