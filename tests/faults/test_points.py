"""Test that every fault point names an existing function.

The source is parsed, since importing the product would take a minute.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import pytest

from tests.faults.run_with_faults import POINTS
from tests.helpers.fault_runs import ROOT


def bound(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Find (name, statement) of every function, class and import in a module or a class body."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)


@pytest.mark.parametrize("point", POINTS)
def test_a_point_names_a_function_that_can_be_patched(point: str) -> None:
    module, class_name, function = POINTS[point]
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.is_file(), f"{point}: no module {module}"
    names = dict(bound(ast.parse(path.read_text(encoding="utf-8")).body))
    if class_name:
        owner = names.get(class_name)
        assert isinstance(owner, ast.ClassDef), f"{point}: {module} defines no class {class_name}"
        names = dict(bound(owner.body))
    assert function in names, f"{point}: {module} has no {f'{class_name}.' if class_name else ''}{function}"
