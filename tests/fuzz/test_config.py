"""Fuzz configuration files and overrides: the result is a RunConfig that reads back equal, or one line."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from selfemo.config.load import as_yaml, load_config
from selfemo.config.schema import RunConfig
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens

ROOT = Path(__file__).resolve().parents[2]
SOUND = [
    b"seed: 3\ntrain:\n  learning_rate: 1.0e-4\ncorpus: {name: everyday}\n",
    b"iterations: 2\nmodel: {path: ''}\noutput_dir: runs/x\n",
]
# Few and short: PyYAML reads 0.2 MB/s.
SOUND += [b"\n".join((ROOT / "examples" / "configs" / "smoke_cpu.yaml").read_bytes().splitlines()[1:12])]
FIELDS = [
    f"{section}.{name}" if name else section
    for section, values in dataclasses.asdict(RunConfig()).items()
    for name in (values if isinstance(values, dict) else [""])
]
NAMES = [*FIELDS, "train", "a.b", "seed.x", "", "."]
TOKENS = [
    b"seed: ",
    b"\n",
    b"train:",
    b"\n  learning_rate: ",
    b"&a [*a, *a]",
    b"<<: ",
    b"? ",
    b"- ",
    b"---\n",
    b"!!python/name:os.system",
    b"'",
]


def settles(config: object, rng: random.Random) -> None:
    """Write a configuration to the run's config.yaml and read it back equal.

    Only some inputs are tried, since PyYAML reads 0.2 MB/s.
    """
    if isinstance(config, RunConfig) and rng.random() < 0.05:
        saved = Path("saved.yaml")
        saved.write_text(as_yaml(config), encoding="utf-8")
        assert load_config(saved) == config


@fuzz
def test_configuration_file(seed: int, tally: Tally, scratch: Path) -> None:
    path = scratch / "run.yaml"
    for rng in tally.batch(seed):
        content = damaged(rng, SOUND, TOKENS) if rng.random() < 0.8 else of_tokens(rng, TOKENS)
        path.write_bytes(content)
        settles(tally.try_input(lambda: load_config(path), content), rng)


@fuzz
def test_configuration_overrides(seed: int, tally: Tally, scratch: Path) -> None:
    for rng in tally.batch(seed):
        overrides = [f"{rng.choice(NAMES)}={_value(rng)}" for _ in range(rng.randint(0, 3))]
        settles(tally.try_input(lambda: load_config(None, overrides), overrides), rng)  # noqa: B023


def _value(rng: random.Random) -> str:
    return rng.choice([of_tokens(rng, TOKENS, 3).decode("utf-8", "replace"), "1", "0.5", "x"])
