"""Writes docs/configuration.md: every field of the configuration with its type, default and docstring.

`python tools/config_reference.py` writes it; `--check` exits with 1 if the committed file differs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from selfemo.corpora.registry import corpus_names
from selfemo.kernels.config import PRESETS
from selfemo.selfplay.views import view_names

ROOT = Path(__file__).resolve().parents[1]
SOURCES = tuple(ROOT / "selfemo" / "config" / name for name in ("schema.py", "method.py"))
"""RunConfig and its sections."""
TARGET = ROOT / "docs" / "configuration.md"
HEADER = """# Configuration reference

Generated from `selfemo/config/schema.py` and `selfemo/config/method.py` by
`python tools/config_reference.py`; do not edit.

A run reads one YAML file (`--config FILE`) and dotted overrides (`section.field=value`), and every field
below has a default. Unknown keys, wrong types and combinations that cannot work are refused before
anything starts; `selfemo train --dry-run` checks a configuration without running it.
"""


def main() -> int:
    """Return the exit status."""
    text = render([ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES])
    if "--check" in sys.argv:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if current != text:
            print(
                f"{TARGET.relative_to(ROOT)} is out of date: run python tools/config_reference.py",
                file=sys.stderr,
            )
        return int(current != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


def render(modules: Sequence[ast.Module]) -> str:
    """Return the whole page: the root's own fields first, then each section under its name in the root."""
    classes = {
        node.name: node for module in modules for node in module.body if isinstance(node, ast.ClassDef)
    }
    root = classes["RunConfig"]
    sections = [(name, classes[kind]) for name, kind, _, _ in _fields(root) if kind in classes]
    own = [entry for entry in _fields(root) if entry[1] not in classes]
    parts = [HEADER, _table("Run", ast.get_docstring(root) or "", "", own)]
    parts += [
        _table(f"`{name}`", ast.get_docstring(node) or "", f"{name}.", _fields(node))
        for name, node in sections
    ]
    return "\n".join(parts)


def _fields(node: ast.ClassDef) -> list[tuple[str, str, str, str]]:
    """Return (name, type, default, docstring) of every field. The docstring is the string that follows it."""
    found = []
    for statement, following in zip(node.body, [*node.body[1:], None]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            text = " ".join(str(following.value.value).split()) if is_text else ""  # type: ignore[union-attr]
            default = ast.unparse(statement.value) if statement.value else ""
            found.append((statement.target.id, ast.unparse(statement.annotation), default, text))
    return found


def _table(title: str, intro: str, prefix: str, fields: list[tuple[str, str, str, str]]) -> str:
    rows = [
        f"| `{prefix}{name}` | {_type(kind)} | `{default}` | {text} |" for name, kind, default, text in fields
    ]
    return "\n".join(
        [
            f"## {title}",
            "",
            intro,
            "",
            "| field | type | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


NAMED = {
    "Positive": "integer > 0",
    "Count": "integer >= 0",
    "Share": "number in [0, 1]",
    "Decay": "number in [0, 1)",
    "NonNegative": "number >= 0",
    "PositiveFloat": "number > 0",
    "AtLeastTwo": "integer >= 2",
    "PathText": "path",
    "PathList": "names or paths",
    "CorpusName": f"one of {', '.join(map(repr, corpus_names()))}",
    "LossName": f"one of {', '.join(map(repr, PRESETS))}",
    "tuple[ViewName, ...]": f"list of {', '.join(map(repr, view_names()))}",
    "float": "number",
    "None": "null",
}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _type(annotation: str) -> str:
    """Say a field's type in words."""
    alternatives: list[ast.expr] = []
    node = ast.parse(annotation, mode="eval").body
    while isinstance(node, ast.BinOp):  # a | b | c is (a | b) | c
        alternatives.insert(0, node.right)
        node = node.left
    return " or ".join(_alternative(part) for part in (node, *alternatives))


def _alternative(node: ast.expr) -> str:
    text = ast.unparse(node)
    if text in NAMED:
        return NAMED[text]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        kind, first, *_ = ast.unparse(node.value), *node.slice.elts
        if kind == "Literal":
            return f"one of {', '.join(map(ast.unparse, node.slice.elts))}"
        if kind == "Annotated" and isinstance(node.slice.elts[1], ast.Call):
            limits = (f"{BOUNDS[str(k.arg)]} {ast.unparse(k.value)}" for k in node.slice.elts[1].keywords)
            return f"{_alternative(first)} {' and '.join(limits)}"
    return text


if __name__ == "__main__":
    sys.exit(main())
