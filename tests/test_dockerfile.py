"""Test the Dockerfile, which cannot be built here: its pins, its form, and the statements of its header."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
ARGS = dict(re.findall(r"^ARG (\w+)_VERSION=(\S+)$", TEXT, re.MULTILINE))
BUILD_TOOLS = dict(re.findall(r"\b(ninja|pybind11|setuptools|wheel)==([\w.]+)", TEXT))
STAGES = {
    match[1]: match[2]
    for match in re.finditer(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}

FLASH_ATTN_BOUNDS = ("2.7.3", "2.8.4")
"""Bounds on flash-attn's version in Transformer Engine 2.20.2; the newer bound is excluded.

They are `version_required_blackwell` and `max_version` of FlashAttentionUtils in
transformer_engine/pytorch/attention/dot_product_attention/utils.py of its wheel. Outside of them
its FlashAttention path is off.
"""


def _requirements(distribution: str, extra: str) -> dict[str, Requirement]:
    found = [Requirement(text) for text in importlib.metadata.requires(distribution) or []]
    return {r.name: r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})}


@pytest.mark.parametrize(
    ("argument", "package"),
    [
        ("TORCH", "torch"),
        ("TRITON", "triton"),
        ("VLLM", "vllm"),
        ("TRANSFORMER_ENGINE", "transformer-engine"),
        ("FLASH_ATTN", "flash-attn"),
    ],
)
def test_pins_are_those_of_setup_py(argument: str, package: str) -> None:
    """Compare pins: equal if setup.py pins a version, else within its bounds."""
    assert _requirements("selfemo", "gpu")[package].specifier.contains(ARGS[argument])


def test_transformer_engine_is_one_that_megatron_core_names() -> None:
    """Look the version up: megatron-core 0.19.2 names it without a range."""
    assert _requirements("megatron-core", "te")["transformer-engine"].specifier.contains(
        ARGS["TRANSFORMER_ENGINE"]
    )


def test_flash_attn_is_one_that_transformer_engine_takes() -> None:
    assert ARGS["TRANSFORMER_ENGINE"] == "2.20.2"  # for another version, read its bounds
    oldest, newest = map(Version, FLASH_ATTN_BOUNDS)
    assert oldest <= Version(ARGS["FLASH_ATTN"]) < newest


def test_the_commands_in_the_documentation_install_the_same_versions() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text().split("## Installing\n")[1].split("\n## ")[0]
    named = {
        (r.name, str(r.specifier))
        for r in map(Requirement, re.findall(r"[\w-]+(?:\[[\w,]+\])?==[\w.]+", page))
    }
    assert named == {
        ("torch", f"=={ARGS['TORCH']}"),
        ("triton", f"=={ARGS['TRITON']}"),
        ("transformer-engine", f"=={ARGS['TRANSFORMER_ENGINE']}"),
        ("flash-attn", f"=={ARGS['FLASH_ATTN']}"),
        *((name, f"=={version}") for name, version in BUILD_TOOLS.items()),
    }


def test_the_build_tools_are_pinned_and_setuptools_is_the_one_that_torch_asks_for() -> None:
    assert set(BUILD_TOOLS) == {"ninja", "pybind11", "setuptools", "wheel"}
    torch = {r.name: r for r in map(Requirement, importlib.metadata.requires("torch") or [])}
    assert torch["setuptools"].specifier.contains(BUILD_TOOLS["setuptools"])


def test_the_build_fits_64_gb_of_memory_and_compiles_for_one_architecture() -> None:
    """Count 9 GB for each of flash-attn's jobs, its own estimate, in the image and in the documentation."""
    page = (ROOT / "docs" / "gpu.md").read_text().split("## Installing\n")[1].split("\n## ")[0]
    for text, pattern in ((TEXT, r"^ARG {}=\"?([^\"\n]*)\"?$"), (page, r"\b{}=(\S+)")):
        jobs, names = pattern.format("MAX_JOBS"), ("CUDA_ARCHITECTURES", "FLASH_ATTN_CUDA_ARCHS")
        (most,) = set(re.findall(jobs, text, re.MULTILINE))
        assert int(most) * 9 <= 48  # the rest is the compilers' host, the page cache and pip
        (architectures,) = {
            found for name in names for found in re.findall(pattern.format(name), text, re.MULTILINE)
        }
        assert architectures == "90"


def test_the_python_is_the_one_setup_py_asks_for() -> None:
    wanted = SpecifierSet(importlib.metadata.metadata("selfemo")["Requires-Python"])
    assert wanted.contains(f"{ARGS['PYTHON']}.13")
    assert sys.version.startswith(ARGS["PYTHON"])  # and of the Python that runs these tests


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_an_image_runs_as_an_ordinary_user_and_reports_its_health(stage: str) -> None:
    instructions = STAGES[stage]
    (uid,) = re.findall(r"^USER (\S+)$", instructions, re.MULTILINE)
    assert int(uid) > 0
    assert f"useradd --uid {uid} " in instructions
    assert instructions.index(f"USER {uid}") > instructions.rindex("\nCOPY ")
    assert 'CMD ["selfemo", "doctor", "--json"]' in instructions.split("HEALTHCHECK")[1]


def test_the_gpu_image_is_the_default_and_carries_no_build_stage() -> None:
    assert list(STAGES) == ["uv", "cpu", "gpu-build", "gpu"]
    assert "cudnn-devel" not in TEXT.split("AS gpu\n")[1]


def test_the_run_command_of_the_header_brings_model_and_corpus_and_a_directory_to_write_to() -> None:
    header = TEXT.split("\nARG ")[0]
    (command,) = re.findall(r"docker run (?:.*\\\n)*.*train_qwen3_8b\.sh", header)
    for variable in ("MODEL_DIR", "SELFEMO_DATA"):
        (place,) = re.findall(rf"--env {variable}=(\S+)", command)
        assert f":{place}:ro" in command
    assert "/runs:/workspace/runs" in command
    uid = re.findall(r"^USER (\d+)$", TEXT, re.MULTILINE)[0]
    assert f"chown {uid} runs" in header


def test_weights_and_results_stay_out_of_the_images() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"runs", "models", "checkpoints", ".git", ".venv"} <= set(ignored)


def test_every_copied_path_exists() -> None:
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )*(\S+) \S+$", TEXT, re.MULTILINE):
        assert (ROOT / source).exists(), source
    for script in re.findall(r"python (tools/\S+)", TEXT):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("stage", ["cpu", "gpu-build"])
def test_both_images_can_run_the_tests_their_header_speaks_of(stage: str) -> None:
    """Check the packages.

    `make gpu-check` runs pytest on the GPU image; the CPU image is for demo and tests.
    """
    assert "-r requirements/dev.txt" in STAGES[stage]
    assert "pytest" in (ROOT / "requirements" / "dev.txt").read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run(
        [str(hadolint), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")
