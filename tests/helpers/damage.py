"""Make inputs to fuzz with: sound files with a few edits, and text from a format's own tokens.

A few edits leave a file sound enough to pass the first check. hypothesis draws the seed of a batch,
and a plain generator draws the batch from it: a hundred thousand inputs then cost minutes, and a
failure names a seed that reproduces it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

INPUTS = int(os.environ.get("FUZZ_INPUTS", "300"))
"""Inputs per target."""
BATCH = 100
"""Inputs per seed."""

NOISE = (
    *(
        b"\x00",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b"\x1b[31m",
        b"\x1b]0;x\x07",
        b"\x7f",
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
    ),
    *(char.encode() for char in "\u202e\u2028\u00a0\u200d\u0301\u0130\u00df\U0001f600"),
    *(
        b"[red]",
        b"[/]",
        b"<|im_end|>",
        b"<script>",
        b"$(id)",
        b"../../",
        b"/etc/passwd",
        b"%00",
        b'"',
        b"'",
        b"\\",
        b"\\ud800",
        b"\\u0000",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"&a ",
        b"*a",
        b"!!int ",
        b"!!timestamp ",
        b"<<",
        b"#",
        b"%",
        b"- ",
        b"null",
        b"true",
        b"{}",
        b"[]",
    ),
    *(
        b"0",
        b"-1",
        b"1e999",
        b"NaN",
        b"Infinity",
        b"1.5",
        b"18446744073709551616",
        b"2026-99-99",
        b"0x",
        b"1:2",
        b"7",
        b'"a"',
    ),
)
"""Pieces that mean something to some parser or terminal."""
BULK = (b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"a" * 20_000, b"/" * 300, b"\\" * 3000, b'"a",' * 3000)
"""Pieces that try limits; drawn less often, since they take most of the time."""


def damaged(rng: random.Random, sound: Sequence[bytes], tokens: Sequence[bytes] = (), most: int = 4) -> bytes:
    """Copy one of `sound` with up to `most` edits: a piece inserted, a range cut, copied or
    overwritten, a bit flipped.

    Args:
        tokens: pieces of the format, beside NOISE.
    """
    data = bytearray(rng.choice(sound))
    for _ in range(rng.randint(0, most)):
        start = rng.randint(0, len(data))
        stop = min(len(data), start + rng.choice((0, 1, 2, 5, 20, 100)))
        match rng.randint(0, 4):
            case 0:
                data[start:start] = _piece(rng, tokens)
            case 1:
                data[start:stop] = _piece(rng, tokens)
            case 2:
                del data[start:stop]
            case 3:
                at = rng.randint(0, len(data))
                data[at:at] = data[start:stop]
            case _ if start < len(data):
                data[start] ^= 1 << rng.randint(0, 7)
    return bytes(data)


def of_tokens(rng: random.Random, tokens: Sequence[bytes], most: int = 12) -> bytes:
    """Join tokens and noise in any order."""
    return b"".join(_piece(rng, tokens) for _ in range(rng.randint(0, most)))


def _piece(rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    if rng.random() < 0.01:
        return rng.choice(BULK)
    if rng.random() < 0.1:
        return rng.randbytes(rng.randint(1, 8))
    return rng.choice(tokens if tokens and rng.random() < 0.5 else NOISE)


def fuzz(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test until it has had INPUTS inputs; its argument `rng` stands for a batch."""
    batches: Any = settings(
        max_examples=-(-INPUTS // BATCH),
        deadline=None,
        database=None,
        phases=[Phase.generate],  # do not shrink: a smaller seed is no simpler input
        suppress_health_check=list(HealthCheck),
        derandomize="FUZZ_INPUTS" not in os.environ,
    )
    return batches(given(seed=st.integers(0, 2**64 - 1))(test))
