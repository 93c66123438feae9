"""How far from transformers' best token a probe's token may be."""

from __future__ import annotations

import pytest
import torch

from selfemo.sync.probe import TIE_TOLERANCE, tie_tolerance


@pytest.mark.parametrize("largest", [1.0, 15.9, 16.0, 31.9, 32.0, 100.0])
def test_bf16_allows_two_units_in_the_last_place_of_the_largest_logit(largest: float) -> None:
    logits = torch.tensor([[-largest, 0.5, 0.25]])
    exact = torch.tensor(largest).bfloat16()
    unit = float(torch.nextafter(exact, torch.tensor(float("inf"), dtype=torch.bfloat16)) - exact)
    assert tie_tolerance(logits, "bfloat16").item() == pytest.approx(max(0.25, 2 * unit))


def test_fp32_allows_nothing_more_than_before_at_any_logit_a_model_has() -> None:
    logits = torch.tensor([[0.0, 60.0], [-300.0, 1.0]])
    assert tie_tolerance(logits, "float32").tolist() == pytest.approx([TIE_TOLERANCE["float32"]] * 2)


def test_every_row_has_its_own_tolerance() -> None:
    assert tie_tolerance(torch.tensor([[1.0, 2.0], [64.0, 2.0]]), "bfloat16").tolist() == [0.25, 1.0]
