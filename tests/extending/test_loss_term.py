"""Test a loss term that is added as docs/extending.md says: loss and gradient are those of its formula."""

from __future__ import annotations

import inspect
import sys
import types
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import pytest
import torch
from torch import Tensor

from selfemo.kernels import LossConfig, grpo_loss, torch_backend
from selfemo.kernels import config as config_module
from selfemo.kernels.torch_backend import TorchBackend
from tests.helpers import kernel_oracle as oracle
from tests.helpers.guide import example
from tests.helpers.kernel_cases import Case, make_case

SETTINGS = {"aggregation": "token_mean", "kl_beta": 0.1}
WEIGHT = 0.3
ORIGINAL = TorchBackend.sequence_loss


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> type[LossConfig]:
    """Add the page's lines to their two places; returns the configuration with the new field."""
    source = inspect.getsource(torch_backend)
    (place,) = (line for line in source.splitlines() if line.strip().startswith("token_loss_T ="))
    lines = indent(example("kernels/torch_backend.py, in sequence_loss below token_loss_T"), " " * 8)
    changed: Any = types.ModuleType("torch_backend_with_a_term")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    exec(compile(source.replace(place, f"{place}\n{lines}"), "extending.md", "exec"), vars(changed))
    monkeypatch.setattr(TorchBackend, "sequence_loss", changed.TorchBackend.sequence_loss)
    names = {**vars(config_module), "dataclass": dataclass}
    field = indent(example("kernels/config.py, in LossConfig"), " " * 4)
    exec(f"@dataclass(frozen=True)\nclass Extended(LossConfig):\n{field}", names)
    found: type[LossConfig] = names["Extended"]
    return found


def loss_of(case: Case, config: LossConfig, **source: Tensor) -> Tensor:
    """Compute the loss of a case from logits, or from hidden states and the output weight."""
    return grpo_loss(
        source.get("logits_TV"),
        case.targets_T,
        case.cu_seqlens,
        hidden_TH=source.get("hidden_TH"),
        weight_VH=source.get("weight_VH"),
        config=config,
        advantage_S=case.advantage_S,
        sequence_weight_S=case.weight_S,
        old_logprob_T=case.old_T,
        ref_logprob_T=case.ref_T,
        rollout_logprob_T=case.rollout_T,
        mask_T=case.mask_T,
        counts=case.counts,
        vocab_size=case.vocab_size,
    ).loss


def truth(case: Case, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Compute loss and gradient of the logits in fp64: the oracle's, and the term's formula."""
    known = oracle.loss(
        *(case.logits_TV, case.targets_T, case.cu_seqlens, case.advantage_S, config, case.counts),
        weight_S=case.weight_S,
        old_T=case.old_T,
        ref_T=case.ref_T,
        rollout_T=case.rollout_T,
        mask_T=case.mask_T,
        vocab_size=case.vocab_size,
    )
    logits_TV = case.logits_TV.detach().double().requires_grad_()
    logprob_T, _ = oracle.distribution(logits_TV, case.targets_T, config.temperature, case.vocab_size)
    term = torch.zeros((), dtype=torch.float64)
    for s, (begin, end) in enumerate(zip(case.cu_seqlens.tolist(), case.cu_seqlens.tolist()[1:])):
        if case.advantage_S[s] > 0:
            kept_T = logprob_T[begin:end][case.mask_T[begin:end]]
            term = term - WEIGHT * float(case.weight_S[s]) * kept_T.sum() / case.counts.tokens
    term.backward()
    assert logits_TV.grad is not None
    return known.loss + term.detach(), known.dlogits_TV + logits_TV.grad


def test_loss_and_gradient_are_those_of_the_formula(extended: type[LossConfig]) -> None:
    case = make_case()
    config = extended(**SETTINGS, imitation_weight=WEIGHT)
    logits_TV = case.logits_TV.clone().requires_grad_()
    loss = loss_of(case, config, logits_TV=logits_TV)
    loss.backward()
    expected, gradient_TV = truth(case, config)
    assert float((case.advantage_S > 0).sum()) not in (0, len(case.advantage_S)), "some are pulled, some not"
    assert abs(float(loss.detach() - expected)) <= 1e-6 * max(1.0, abs(float(expected)))
    assert oracle.worst_of_scale(logits_TV.grad, gradient_TV) <= 5e-6


def test_hidden_states_bring_the_same_gradient_as_logits(extended: type[LossConfig]) -> None:
    """The output layer that is computed chunk by chunk knows the term without a line of its own."""
    case = make_case(columns=300, vocab_size=300)
    torch.manual_seed(0)
    hidden_TH, weight_VH = torch.randn(len(case.targets_T), 24), torch.randn(300, 24) / 5
    config = extended(**SETTINGS, imitation_weight=WEIGHT)
    gradients = []
    for fused in (False, True):
        hidden, weight = hidden_TH.clone().requires_grad_(), weight_VH.clone().requires_grad_()
        source = {"hidden_TH": hidden, "weight_VH": weight} if fused else {"logits_TV": hidden @ weight.T}
        loss_of(case, config, **source).backward()
        gradients.append((hidden.grad, weight.grad))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        assert oracle.worst_of_scale(found, expected) <= 1e-5


def test_a_weight_of_zero_changes_no_bit(extended: type[LossConfig]) -> None:
    case = make_case()
    found = []
    for config in (extended(**SETTINGS), extended(**SETTINGS, imitation_weight=WEIGHT)):
        logits_TV = case.logits_TV.clone().requires_grad_()
        loss_of(case, config, logits_TV=logits_TV).backward()
        found.append(logits_TV.grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchBackend, "sequence_loss", ORIGINAL)
        logits_TV = case.logits_TV.clone().requires_grad_()
        loss_of(case, LossConfig(**SETTINGS), logits_TV=logits_TV).backward()
    assert torch.equal(found[0], logits_TV.grad)
    assert not torch.equal(found[1], logits_TV.grad)
