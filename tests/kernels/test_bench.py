"""Test that the benchmark measures what this machine allows, and gives a reason for each row that
it leaves out.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor

from tools.kernels.benchmark import formulas
from tools.kernels.benchmark.measure import Sizes, run_all

pytestmark = pytest.mark.long

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kernels" / "__main__.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_kernels", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_agree_and_absent_ones_are_rows_that_say_so() -> None:
    sizes = Sizes(
        workload="projection", tokens=128, hidden=8, columns=50, dtype="float32", device="cpu", repeats=2
    )
    names = ("eager matmul, log_softmax", "selfemo grpo_loss, fused", "verl linear_cross_entropy")
    rows = {row.formula: row for row in run_all(sizes, threads=1, names=names)}
    assert set(rows) == set(names)
    ours = rows["selfemo grpo_loss, fused"]
    assert ours.median_ms is not None
    assert ours.median_ms > 0
    assert ours.error is not None
    assert ours.error <= 1e-6
    assert ours.extra_peak_bytes is not None
    assert rows["verl linear_cross_entropy"].median_ms is None
    assert rows["verl linear_cross_entropy"].note == "runs on cuda only"


def test_a_peer_that_fails_is_a_row_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> tuple[Tensor, ...]:
        raise RuntimeError("no compiler")

    ours = next(formula for formula in formulas.LOGITS if formula.name == "selfemo token_logprobs")
    peer = formulas.Formula("peer", broken, needs="torch")
    monkeypatch.setitem(formulas.WORKLOADS, "logits", (peer, ours))
    sizes = Sizes(workload="logits", tokens=2, hidden=1, columns=50, dtype="float32", device="cpu", repeats=1)
    failed, measured = run_all(sizes, threads=1)
    assert (failed.median_ms, failed.note) == (None, "failed: RuntimeError: no compiler")
    assert measured.median_ms is not None


def test_traffic_table_has_both_implementations(tool: ModuleType, tmp_path: Path) -> None:
    assert tool.main(["--traffic", "--json", str(tmp_path / "figures.json")]) == 0
    rows = {row["formula"]: row for row in json.loads((tmp_path / "figures.json").read_text())["traffic"]}
    assert rows["selfemo CPU path, entropy in the loss"]["read"] == 4.0
    assert rows["selfemo CPU path, entropy in the loss"]["written"] == 2.0
    assert rows["selfemo Triton vocab_stats"]["read"] == pytest.approx(2.0, abs=0.001)
    assert rows["eager log_softmax, entropy in the loss"]["read"] > 70
