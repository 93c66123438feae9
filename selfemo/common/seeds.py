"""Derives every random number of a run from its purpose, never from a process-wide generator.

A seed is a hash of (run seed, purpose, coordinates such as iteration, group, sample, turn, role). So any turn
can be generated again alone, a resume stores no decode in flight, and a new draw in one place moves no other
draw.
"""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache

SEED_BITS = 63
"""vLLM and torch take a signed 64-bit seed."""


def derive_seed(run_seed: int, *coordinates: int | str) -> int:
    """Derive a seed in [0, 2**63) that depends on every coordinate and on their order."""
    hasher = _begun(run_seed, *coordinates[:-1]).copy()
    for part in coordinates[-1:]:
        hasher.update(f"\x1f{type(part).__name__}:{part}".encode())
    return int.from_bytes(hasher.digest(), "big") >> (64 - SEED_BITS)


@lru_cache(maxsize=256, typed=True)
def _begun(run_seed: int, *coordinates: int | str) -> hashlib.blake2b:
    """Hash all coordinates but the last, in which the samples of a group differ."""
    text = "\x1f".join([str(run_seed), *(f"{type(part).__name__}:{part}" for part in coordinates)])
    return hashlib.blake2b(text.encode(), digest_size=8)


def derive_rng(run_seed: int, *coordinates: int | str) -> random.Random:
    """Make a private generator, for draws that have no seed parameter of their own (shuffles, choices)."""
    return random.Random(derive_seed(run_seed, *coordinates))
