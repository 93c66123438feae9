"""Makes an environment from the lock, and checks that everything in it imports.

    python3.12 tools/set_up.py [.venv]

It installs uv, the packages, and this checkout in editable form. `make setup` calls it with the Python
that tools/find_python.sh found; it needs nothing but the standard library. Prints one line per step
with its seconds. Libraries' own output goes to set-up.log in the environment; its end is shown if a
step fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = "uv==0.13.9"
PYTORCH_CPU_INDEX = "download.pytorch.org/whl/cpu"
PIP_TO_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
}
"""Variables with which users point pip at a mirror, and uv's names for them. uv reads none of pip's."""
LOG_LINES = 15


def main() -> int:
    """Return the exit status: 0, or 1 after the end of the failed step's output."""
    venv = ROOT / (sys.argv[1] if len(sys.argv) > 1 else ".venv")
    python = venv / "bin" / "python"
    environment = uv_environment(os.environ)
    say(f"Python {sys.version.split()[0]} ({sys.executable}) into {venv}")
    say(f"{torch_source(environment)}; {free_gigabytes(venv):.1f} GB are free there")
    uv = [str(venv / "bin" / "uv"), "pip", "install", "--python", str(python)]
    packages = [
        "--compile-bytecode",
        "--override",
        "requirements/overrides.txt",
        "-r",
        "requirements/cpu.lock",
    ]
    steps = {
        "environment": [
            sys.executable,
            "-m",
            "venv",
            *([] if is_of_this_python(venv) else ["--clear"]),
            str(venv),
        ],
        "uv": [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV],
        "packages (some minutes on a slow line)": [*uv, *packages, torch_requirement()],
        "this checkout": [*uv, "--no-deps", "--no-build-isolation", "--editable", "."],
        "its byte-code": [str(python), "-m", "compileall", "-q", "selfemo", "kernels", "tools"],
        "imports": [str(python), "tools/check_install.py"],
    }
    for number, (name, command) in enumerate(steps.items(), start=1):
        with progress(f"{number}/{len(steps)} {name}"):
            result = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        if venv.is_dir():
            with (venv / "set-up.log").open("a") as log:
                log.write(f"$ {' '.join(command)}\n{result.stdout}")
        if result.returncode:
            say(f"{name} failed; the end of {venv / 'set-up.log'}:", sys.stderr)
            print(*result.stdout.splitlines()[-LOG_LINES:], sep="\n", file=sys.stderr)
            return 1
    say("complete, everything the job needs imports")
    return 0


def uv_environment(user: Mapping[str, str]) -> dict[str, str]:
    """Return the user's environment, with pip's index variables copied to uv's names unless those are set."""
    environment = dict(user)
    for pip_name, uv_name in PIP_TO_UV.items():
        if pip_name in user:
            environment.setdefault(uv_name, user[pip_name])
    if "UV_INDEX" in environment:
        # Compare versions of all indexes, as pip does; uv would take the first index that has a package.
        environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return environment


def torch_source(environment: Mapping[str, str]) -> str:
    """Return a line about the torch build to come and the size of the environment.

    It is printed before anything is downloaded.
    """
    if environment.get("UV_TORCH_BACKEND") == "cpu" or PYTORCH_CPU_INDEX in environment.get("UV_INDEX", ""):
        return "torch: PyTorch's CPU build; about 4 GB on disk"
    return (
        "torch: PyPI's build with CUDA's libraries, 2.9 GB of downloads, 6.9 GB on disk; "
        "UV_TORCH_BACKEND=cpu takes the CPU build: 4 GB"
    )


def free_gigabytes(place: Path) -> float:
    """Return the free space of the file system that a path is on, or will be, in GB."""
    there = next(path for path in (place, *place.parents) if path.exists())
    return shutil.disk_usage(there).free / 1e9


def torch_requirement() -> str:
    """Return `torch==X` from requirements/base.txt.

    The lock leaves torch out: its file, and so its hash, depends on the index.
    """
    lines = (ROOT / "requirements" / "base.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def is_of_this_python(venv: Path) -> bool:
    """Whether an environment exists that a Python of the same minor version made.

    Its packages then stay.
    """
    return (venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}").is_dir() and (
        venv / "bin" / "python"
    ).exists()


@contextmanager
def progress(step: str) -> Iterator[None]:
    """Print a step's name with its seconds: counting on a terminal, elsewhere once the step is over."""
    started, over = time.monotonic(), threading.Event()

    def count() -> None:
        while not over.wait(1.0):
            print(f"\rset-up {step}: {time.monotonic() - started:.0f} s", end="", flush=True)

    ticking = threading.Thread(target=count, daemon=True)
    if sys.stdout.isatty():
        ticking.start()
    try:
        yield
    finally:
        over.set()
        if ticking.is_alive():
            ticking.join()
        start = "\r" if sys.stdout.isatty() else ""
        print(f"{start}set-up {step}: {time.monotonic() - started:.0f} s", flush=True)


def say(line: str, file: object = None) -> None:
    """Print one line of set-up's own."""
    print(f"set-up: {line}", file=file, flush=True)  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main())
