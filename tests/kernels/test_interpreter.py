"""Run test_interpreted.py in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("test_interpreted.py")
ROOT = CASES.parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all cases; returns the failure's text by case, "" for a pass."""
    report = tmp_path_factory.mktemp("interpreter") / "report.xml"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(CASES),
        "-m",
        "interpreted",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert report.exists(), process.stdout + process.stderr
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        problems = [node for node in case if node.tag in ("failure", "error", "skipped")]
        found[case.get("name", "")] = "\n".join(node.text or node.get("message", "") for node in problems)
    return found


@pytest.mark.long
def test_every_case_passes_in_the_interpreter(outcomes: dict[str, str]) -> None:
    failed = {name: text for name, text in outcomes.items() if text}
    assert not failed, "\n\n".join(f"{name}\n{text}" for name, text in failed.items())
    assert len(outcomes) >= 50  # an empty report would pass as well


@pytest.mark.long
def test_the_interpreter_saw_the_real_vocabulary(outcomes: dict[str, str]) -> None:
    assert sum("real_vocabulary" in name for name in outcomes) >= 2
