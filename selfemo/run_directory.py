"""A run's directory: claimed by one configuration, written by rank 0, never half written.

JSON files are written under a temporary name and renamed; JSON-lines files are appended a whole line at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfemo.config import RunConfig
from selfemo.config_file import as_yaml
from selfemo.errors import UserError

CONFIG_NAME = "config.yaml"
SUMMARY_NAME = "summary.json"
METRICS_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples.jsonl"
LOGS_NAME = "logs"


class RunDirectory:
    """Paths and writers of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def claim(cls, config: RunConfig) -> RunDirectory:
        """The directory of this configuration, created if it does not exist.

        What an earlier, unfinished run of the same configuration left is removed (its logs stay): records of two
        runs must not mix, and resuming is not built yet. A finished run is left as it is.

        Raises:
            UserError: the directory is not empty and holds another run, or cannot be written.
        """
        run = cls.check(config)
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            if not run.is_complete:
                run._remove_unfinished()
            run.write_text(CONFIG_NAME, as_yaml(config))
        except OSError as error:
            raise UserError(f"{run.root}: cannot be written ({error.strerror}): choose another output_dir") from None
        return run

    @classmethod
    def check(cls, config: RunConfig) -> RunDirectory:
        """As `claim`, but writes nothing."""
        root = Path(config.output_dir)
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: exists and is not a directory: choose another output_dir")
        stored = root / CONFIG_NAME
        foreign = root.exists() and any(entry.name != LOGS_NAME for entry in root.iterdir())  # another rank may have begun its log
        if foreign and not stored.exists():
            raise UserError(f"{root}: not empty and not a run of selfemo (no {CONFIG_NAME}): choose another output_dir")
        if stored.exists() and stored.read_text(encoding="utf-8") != as_yaml(config):
            raise UserError(f"{root}: holds a run with another configuration (see {stored}): choose another output_dir or remove it")
        return cls(root)

    @property
    def is_complete(self) -> bool:
        """The run ended and its summary is written."""
        return (self.root / SUMMARY_NAME).exists()

    def _remove_unfinished(self) -> None:
        for entry in self.root.iterdir():
            if entry.name not in (CONFIG_NAME, LOGS_NAME):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def path(self, *parts: str) -> Path:
        """A path inside the run."""
        return self.root.joinpath(*parts)

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file: under a temporary name, then renamed."""
        target = self.path(name)
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON object, indented, with keys in the given order."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append_jsonl(self, name: str, *records: Mapping[str, Any]) -> None:
        """Append records to a JSON-lines file, one write for all of them."""
        with self.path(name).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records))
