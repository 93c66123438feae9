"""Find every place in the product that asks for a GPU, for the comparison with docs/gpu.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("selfemo", "kernels", "tools")
WORDS = frozenset({"cuda", "nccl"})
ATTRIBUTES = frozenset({"is_cuda", "cuda"})


def gpu_regions() -> set[tuple[str, str]]:
    """Find (file, function or class or "module level") of every place that is for a GPU.

    It names "cuda" or "nccl", uses torch.cuda, asks is_cuda, or is a Triton kernel.
    """
    found: set[tuple[str, str]] = set()
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.relative_to(ROOT).is_relative_to("selfemo/kernels"):  # a link to kernels/
                name = path.relative_to(ROOT).as_posix()
                found |= {
                    (name, region) for region in _regions(ast.parse(path.read_text(encoding="utf-8")), ())
                }
    return found


def _regions(node: ast.AST, scope: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = (*scope, child.name)
            if any(ast.unparse(decorator).startswith("triton.jit") for decorator in child.decorator_list):
                yield ".".join(inner)
        if _is_gpu(child):
            yield ".".join(inner) or "module level"
        yield from _regions(child, inner)


def _is_gpu(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ATTRIBUTES
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in WORDS
