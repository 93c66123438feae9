"""Writes what was found as one JSON document and one Markdown page, after every part anew."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tools.kernels.gpu.predictions import compared
from tools.kernels.gpu.rows import Timed
from tools.kernels.gpu.sweep import Setting, best

SCHEMA = 1


@dataclass
class Findings:
    """Everything that one run found. It grows part by part."""

    machine: dict[str, str]
    is_gpu: bool
    budget_s: float
    cases: dict[str, str] = field(default_factory=dict)
    """Largest error by case."""
    failures: dict[str, str] = field(default_factory=dict)
    """What was wrong, by case."""
    trainer: str = ""
    """How far three steps of the trainer are from the recorded ones, or why they did not run."""
    copy_bytes_per_s: float | None = None
    """Bytes read and written per second by a copy of a large tensor: the card's measured bandwidth."""
    timings: list[Timed] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by part."""

    @property
    def sizes(self) -> list[int]:
        """Numbers of tokens that were timed."""
        return sorted({row.tokens for row in self.timings})

    def predictions(self, tokens: int) -> list[tuple[str, str, str]]:
        """Compare the figures with what was predicted."""
        rows = {(row.workload, row.tokens, row.formula): row for row in self.timings}
        card = self.machine["device"] if self.is_gpu else ""
        return compared(rows, tokens, self.copy_bytes_per_s, card)

    def write(self, directory: Path) -> None:
        """Write kernels.json, kernels.md and launches.json, each under another name first."""
        timings = [
            {**asdict(row), "bytes_per_s": row.bytes_per_s, "flops_per_s": row.flops_per_s}
            for row in self.timings
        ]
        document = {
            "schema": SCHEMA,
            **asdict(self),
            "timings": timings,
            "predictions": {tokens: self.predictions(tokens) for tokens in self.sizes},
        }
        launches = {"card": self.machine["device"], "launches": asdict(best(self.settings))}
        _replace(directory / "kernels.json", json.dumps(document, indent=1) + "\n")
        _replace(directory / "launches.json", json.dumps(launches, indent=1) + "\n")
        _replace(directory / "kernels.md", "\n".join(self._page()) + "\n")

    def _page(self) -> list[str]:
        title = f"# The kernels on {self.machine['device']}"
        lines = [title, "", ", ".join(f"{name} {value}" for name, value in self.machine.items())]
        if not self.is_gpu:
            lines += [
                "",
                "A CPU with Triton's interpreter: the times test this program and say nothing of a GPU.",
            ]
        lines += ["", "## Against the fp64 oracle", ""]
        lines += [f"{len(self.cases)} cases agree, {len(self.failures)} do not.", ""]
        lines += [f"- FAILED {name}: {text}" for name, text in self.failures.items()]
        lines += [f"- {name}: {text}" for name, text in self.cases.items()]
        lines += ["", "## Three steps of the trainer, against a CPU's", "", f"{self.trainer}."]
        lines += ["", "## Times", "", f"A copy moves {_scaled(self.copy_bytes_per_s, 1e9)} GB/s.", ""]
        lines += [
            "| operation | tokens | formula | ms | first ms | GB/s | of copy | TFLOP/s | extra GB | note |",
            "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        lines += [self._row(row) for row in self.timings]
        for tokens in self.sizes:
            lines += ["", f"## Predicted and found, {tokens} tokens", ""]
            lines += ["| prediction | found | verdict |", "| --- | ---: | --- |"]
            lines += [
                f"| {text} | {figure} | {verdict} |" for text, figure, verdict in self.predictions(tokens)
            ]
        lines += ["", "## Block sizes and warps", "", "| kernel | block | warps | median ms | note |"]
        lines += ["| --- | ---: | ---: | ---: | --- |"]
        lines += [
            f"| {one.kernel} | {one.launch.block} | {one.launch.warps} "
            f"| {_scaled(one.median_ms)} | {one.note} |"
            for one in self.settings
        ]
        return [*lines, "", f"Seconds: {', '.join(f'{k} {v:.0f}' for k, v in self.seconds.items())}."]

    def _row(self, row: Timed) -> str:
        share = ""
        if row.bytes_per_s is not None and self.copy_bytes_per_s is not None:
            share = f"{row.bytes_per_s / self.copy_bytes_per_s:.0%}"
        cells = (
            row.workload,
            str(row.tokens),
            row.formula,
            _scaled(row.median_ms),
            _scaled(row.first_call_ms),
            _scaled(row.bytes_per_s, 1e9),
            share,
            _scaled(row.flops_per_s, 1e12),
            _scaled(row.extra_peak_bytes, 1e9),
            row.note.replace("|", "/"),
        )
        return f"| {' | '.join(cells)} |"


def _scaled(value: float | None, unit: float = 1.0) -> str:
    return "" if value is None else f"{value / unit:.3g}"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
