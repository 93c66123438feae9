"""Find the code blocks of docs/extending.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def example(file: str) -> str:
    """Find the code block whose first line is a comment that names `file`."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if block.startswith(f"# {file}\n"))


def entry(file: str, names: Mapping[str, Any]) -> Any:
    """Evaluate a block that belongs in a tuple or a dict, among a module's names.

    Returns that tuple or dict.
    """
    _, source = example(file).split("\n", 1)
    return eval(f"{{{source}}}" if source.startswith('"') else f"({source},)", dict(names))
