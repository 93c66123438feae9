"""Derives every random number of a run from its purpose, never from a process-wide generator.

A seed is a hash of (run seed, purpose, coordinates such as iteration, group, sample, turn, role). So any turn
can be generated again alone, a resume stores no decode in flight, and a new draw in one place moves no other
draw.
"""

from __future__ import annotations

import hashlib
import random

SEED_BITS = 63
"""vLLM and torch take a signed 64-bit seed."""


def derive_seed(run_seed: int, *coordinates: int | str) -> int:
    """Derive a seed in [0, 2**63) that depends on every coordinate and on their order."""
    text = "\x1f".join([str(run_seed), *(f"{type(part).__name__}:{part}" for part in coordinates)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> (64 - SEED_BITS)


def derive_rng(run_seed: int, *coordinates: int | str) -> random.Random:
    """Make a private generator, for draws that have no seed parameter of their own (shuffles, choices)."""
    return random.Random(derive_seed(run_seed, *coordinates))
