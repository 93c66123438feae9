"""Imports what the job needs, in one process: the last step of set-up, and the check of the CPU image.

A package that does not import is reported with its error, in one line; the packages after it are tried
nevertheless.
"""

from __future__ import annotations

import importlib
import sys
import warnings

NEEDED = (
    ("torch", "torch"),
    ("triton", "triton"),
    ("megatron-core", "megatron.core"),
    ("transformers", "transformers.models.qwen3"),
    ("vllm", "vllm.entrypoints.llm"),
    ("selfemo", "selfemo.config.schema"),
    ("selfemo's kernels", "selfemo.kernels"),
)


def main() -> int:
    """Return the exit status: 0 if everything imports, else 1 after one line per failure."""
    warnings.simplefilter("ignore")
    failures = {package: error for package, module in NEEDED if (error := import_error(module))}
    for package, error in failures.items():
        print(
            f"set-up: {package} does not import: {error}; delete .venv and run `make setup` again",
            file=sys.stderr,
        )
    if not failures:
        print("set-up: everything the job needs imports")
    return 1 if failures else 0


def import_error(module: str) -> str:
    """Return the error that importing `module` raises, on one line, or "" if it imports."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a damaged package may raise anything: report it
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


if __name__ == "__main__":
    sys.exit(main())
