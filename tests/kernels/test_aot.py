"""Compile every kernel for A100, H100, B200 and MI300 without having one.

There are no spills, accesses are 128 bits wide, and resources equal the committed table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from selfemo.kernels.triton_backend import NORMALISE
from tools.kernels import aot

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make an empty cache: kernels are compiled now, even if an earlier test compiled them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module")
def measured(cache: None) -> list[aot.Resources]:
    return list(aot.compile_all())


def test_every_kernel_compiles_for_every_target(measured: list[aot.Resources]) -> None:
    assert {(row.target, row.kernel) for row in measured} == {
        (t, v.name) for t in aot.TARGETS for v in aot.variants()
    }


def test_no_kernel_spills(measured: list[aot.Resources]) -> None:
    assert {f"{row.target} {row.kernel}": row.spills for row in measured if row.spills} == {}


def test_logits_are_moved_128_bits_at_a_time(measured: list[aot.Resources]) -> None:
    for row in measured:
        if row.kernel in ("vocab_stats", "dlogits"):
            assert row.wide_loads >= 1, row
        if row.kernel == "dlogits":
            assert row.wide_stores == row.stores, row  # it stores nothing but logits


def test_one_special_function_per_logit_and_thread(measured: list[aot.Resources]) -> None:
    """Count special functions: a program of 256 threads (512 on AMD) takes a block of 4,096 logits.

    Those are 16 (8) exps for each thread, and one to rescale the sums.
    """
    for row in measured:
        per_thread = 8 if row.target.startswith("gfx") else 16
        if row.kernel == "dlogits":
            assert row.special == per_thread, row
        if row.kernel == "vocab_stats":
            assert row.special == per_thread + 1, row


def test_every_flag_compiles_switched_off(cache: None) -> None:
    """Compile the variants with a flag off: the table has those with every flag on."""
    by_name = {variant.name: variant for variant in aot.variants()}
    sequence = by_name["sequence_loss_sequence"]
    changes = [
        {"KL": 0},
        {"KL": 1},
        {"KL": 2},
        {"HAS_OLD": False},
        {"HAS_ROLLOUT": False},
        {"HAS_CAP": False},
        {"HAS_DUAL": False},
    ]
    bare = {
        "KL": 0,
        "HAS_OLD": False,
        "HAS_ROLLOUT": False,
        "HAS_CAP": False,
        "HAS_DUAL": False,
        "SEQUENCE_RATIO": False,
    }
    others = [replace(sequence, constants={**sequence.constants, **change}) for change in [*changes, bare]]
    others.append(
        replace(by_name["vocab_stats"], constants={**by_name["vocab_stats"].constants, "HAS_LIVE": False})
    )
    group = by_name["group_advantage"]
    others += [
        replace(group, constants={**group.constants, "NORMALISE": choice}) for choice in NORMALISE.values()
    ]
    for variant in others:
        assert aot.measure(variant, "sm_90").spills == 0, variant.constants


def test_resources_equal_the_committed_table(measured: list[aot.Resources]) -> None:
    """Compare resources; after a deliberate change, `python -m tools.kernels --aot --write`."""
    assert aot.differences(measured, aot.committed()) == []
