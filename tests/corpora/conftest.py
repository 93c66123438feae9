"""Provide the data that corpus tests share: the public corpora if this machine has them, and a
synthetic IEMOCAP release.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Find the directory that has meld/ and emorynlp/."""
    root = Path(os.environ.get("SELFEMO_DATA") or CHECKOUT.parent / "shared" / "data")
    if not (root / "meld").is_dir() or not (root / "emorynlp").is_dir():
        pytest.skip(f"MELD and EmoryNLP are not under {root}: set SELFEMO_DATA to run this test")
    return root


def _dialogue_files(name: str) -> tuple[str, str]:
    """Make the (transcript, evaluations) of one dialogue, in the form of the official release."""
    transcript = (
        f"{name}_F000 [006.2901-008.2357]: Excuse me.\n"
        f"{name}_M000 [007.5712 -010.4750]: Do you have your forms?\n"
        f"{name}_F001: Yeah.\n"
        "M: [LAUGHTER]\n"
        f"{name}_MXX0 [011.0000-012.0000]: Is there a problem?\n"
        f"{name}_F002 [start -end]: Who told you to get in this line?\n"
    )
    evaluations = (
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        f"[6.2901 - 8.2357]\t{name}_F000\tneu\t[2.5000, 2.5000, 2.5000]\n"
        "C-E2:\tNeutral;\t()\nC-E3:\tNeutral;\t()\nC-E4:\tNeutral;\t()\nC-F1:\tAnger;\t()\n"
        "A-E3:\tval 3; act 2; dom  2;\t()\nA-F1:\tval 3; act 2; dom  1;\t()\n\n"
        f"[7.5712 - 10.4750]\t{name}_M000\tfru\t[2.5000, 2.5000, 2.5000]\n"
        "C-E2:\tFrustration; Anger;\t()\nC-E3:\tFrustration;\t()\n"
        "C-E4:\tAnger; Surprise;\t(startled; a bit)\nC-M1:\tSadness;\t()\n"
        "A-E3:\tval 2; act 4; dom  4;\t()\n\n"
        f"[10.9266 - 14.6649]\t{name}_F001\txxx\t[2.0000, 2.5000, 2.5000]\n"
        "C-E2:\tAnger;\t()\nC-E3:\tSadness;\t()\nC-E4:\tExcited;\t()\n\n"
        f"[15.0000 - 16.0000]\t{name}_F002\texc\t[2.0000, 2.5000, 2.5000]\n"
        "C-E2:\tExcited;\t()\nC-E3:\tHappiness;\t()\nC-E4:\tExcited; Other;\t()\n"
    )
    return transcript, evaluations


@pytest.fixture
def iemocap_root(tmp_path: Path) -> Path:
    """Write a release of 7 dialogues a session with 6 turns each, and a macOS leftover beside the
    real files.
    """
    for session in range(1, 6):
        for kind in ("transcriptions", "EmoEvaluation"):
            (tmp_path / f"Session{session}" / "dialog" / kind).mkdir(parents=True)
        for number in range(1, 8):
            name = f"Ses0{session}F_impro0{number}"
            dialog = tmp_path / f"Session{session}" / "dialog"
            transcript, evaluations = _dialogue_files(name)
            (dialog / "transcriptions" / f"{name}.txt").write_text(transcript)
            (dialog / "EmoEvaluation" / f"{name}.txt").write_text(evaluations)
        (tmp_path / f"Session{session}" / "dialog" / "transcriptions" / "._Ses.txt").write_bytes(
            b"\x00\x05\x16\x07"
        )
    return tmp_path


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Return a function that writes a file below tmp_path, byte for byte."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file
