"""Test that docs/gpu.md lists every place that only a GPU reaches, and no place that is gone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.helpers.gpu_lines import ROOT, gpu_regions

ROW = re.compile(
    r"^\| `(?P<file>[\w/.]+\.py)` \| `(?P<region>[\w. ]+)` \| (?P<what>[^|]+) \| (?P<backing>[^|]+) \|$",
    re.MULTILINE,
)
ROWS = [match.groupdict() for match in ROW.finditer((ROOT / "docs" / "gpu.md").read_text())]


def test_every_gpu_branch_is_listed_once() -> None:
    listed = [(row["file"], row["region"]) for row in ROWS]
    assert sorted(gpu_regions() - set(listed)) == [], (
        "add these to the table of docs/gpu.md, with what backs them"
    )
    assert len(listed) == len(set(listed))


def test_every_row_names_a_place_that_exists() -> None:
    for row in ROWS:
        tree = ast.parse((ROOT / row["file"]).read_text(encoding="utf-8"))
        assert row["region"] == "module level" or row["region"] in _names(tree, ()), row


def test_every_row_says_what_backs_it() -> None:
    kinds = ("ahead of time", "library: `", "here", "nothing yet", "the same")
    assert [row for row in ROWS if not row["backing"].startswith(kinds)] == []


def test_library_sources_that_are_named_exist_in_the_installed_version() -> None:
    import importlib.util

    named = {
        path for row in ROWS for path in re.findall(r"`((?:torch|megatron|vllm)/[\w/]+\.py)`", row["backing"])
    }
    assert len(named) > 5
    for path in named:
        package, _, rest = path.partition("/")
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert any((Path(place) / rest).exists() for place in spec.submodule_search_locations or ()), path


def _names(node: ast.AST, scope: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = (*scope, child.name)
            found |= {".".join(inner)} | _names(child, inner)
        else:
            found |= _names(child, scope)
    return found
