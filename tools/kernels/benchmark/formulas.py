"""Defines the formulas that are compared, ours and others', on two workloads with one answer each.

`LOGITS`: log-probability and entropy of existing logits, forward and backward, with random derivatives
of both. `PROJECTION`: hidden states and output weight to an on-policy GRPO loss (mean over tokens and
sequences) and both gradients. A formula returns its gradients, so that a fast wrong answer shows in the
table.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfemo.kernels import LossConfig, grpo_loss, token_logprobs
from selfemo.kernels.fused_linear import DEFAULT_CHUNK_TOKENS

GRPO = LossConfig.preset("grpo", kl_beta=0.0)


@dataclass(frozen=True)
class Batch:
    """Inputs of both workloads. A formula uses those that it needs."""

    targets_T: Tensor
    dlogprob_T: Tensor
    """Derivative of the loss in each log-probability (LOGITS)."""
    dentropy_T: Tensor
    """Derivative in each entropy (LOGITS)."""
    advantage_S: Tensor
    """Advantage of each sequence (PROJECTION)."""
    sequence_length: int
    """Tokens of each sequence. All are equally long, because two of the peers would need padding
    otherwise.
    """

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.arange(len(self.advantage_S) + 1, device=self.targets_T.device) * self.sequence_length

    @property
    def advantage_T(self) -> Tensor:
        """Each token's advantage."""
        return self.advantage_S.repeat_interleave(self.sequence_length)


@dataclass(frozen=True)
class Formula:
    """One implementation.

    `run` takes leaves (logits, or hidden states and weight) and the batch, and returns their gradients.
    """

    name: str
    run: Callable[..., tuple[Tensor, ...]]
    needs: str | None = None
    """Name of a module that must be importable."""
    device: str | None = None
    """Device type that it runs on; None: any."""

    def missing(self, device: str) -> str | None:
        """Return the reason why this formula cannot be measured here, or None."""
        if self.device is not None and self.device != device:
            return f"runs on {self.device} only"
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed (requirements/bench.txt)"
        return None


def _peer(module: str, name: str) -> Any:
    """Import a peer by name, only when it is measured: peers are no dependency."""
    return getattr(importlib.import_module(module), name)


def log_softmax_entropy(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    log_p_TV = torch.log_softmax(logits_TV.float(), -1)
    return log_p_TV.gather(1, targets_T[:, None])[:, 0], -(log_p_TV.exp() * log_p_TV).sum(-1)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def _logits_gradient(
    logits_TV: Tensor, batch: Batch, logprob_T: Tensor, entropy_T: Tensor
) -> tuple[Tensor, ...]:
    (logprob_T @ batch.dlogprob_T + entropy_T @ batch.dentropy_T).backward()
    assert logits_TV.grad is not None
    return (logits_TV.grad,)


def _eager(logits_TV: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    return _logits_gradient(logits_TV, batch, *log_softmax_entropy(logits_TV, batch.targets_T))


def _torch_compile(logits_TV: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    return _logits_gradient(logits_TV, batch, *compiled(log_softmax_entropy)(logits_TV, batch.targets_T))


def _ours(logits_TV: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    got = token_logprobs(logits_TV, batch.targets_T)
    return _logits_gradient(logits_TV, batch, got.logprob_T, got.entropy_T)


def _liger_triton(logits_TV: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """Run Liger's loss. It has no entropy, so there is no gradient to compare.

    It leaves out the last row of each sequence.
    """
    triton_grpo_loss = _peer("liger_kernel.transformers.grpo_loss", "triton_grpo_loss")
    sequences, length = len(batch.advantage_S), batch.sequence_length
    logits_BLV, targets_BL = (
        logits_TV.view(sequences, length, -1),
        batch.targets_T.view(sequences, length)[:, :-1].contiguous(),
    )
    loss, *_ = triton_grpo_loss(
        logits_BLV, None, None, targets_BL, batch.advantage_S, temperature=1.0, beta=0.0, reduce=True
    )
    loss.backward()
    return ()


LOGITS = (
    Formula("eager log_softmax", _eager),
    Formula("torch.compile log_softmax", _torch_compile),
    Formula("selfemo token_logprobs", _ours),
    Formula("Liger triton_grpo_loss (no entropy)", _liger_triton, needs="liger_kernel", device="cuda"),
)


def _gradients(*leaves: Tensor) -> tuple[Tensor, ...]:
    return tuple(leaf.grad for leaf in leaves if leaf.grad is not None)


def _policy_loss(logprob_T: Tensor, batch: Batch) -> Tensor:
    """Compute on-policy GRPO: the ratio is 1 and only its gradient counts."""
    ratio_T = (logprob_T - logprob_T.detach()).exp()
    clipped_T = ratio_T.clamp(0.8, 1.2)
    return -torch.minimum(ratio_T * batch.advantage_T, clipped_T * batch.advantage_T).mean()


def _projection_eager(hidden_TH: Tensor, weight_VH: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    log_p_TV = torch.log_softmax((hidden_TH @ weight_VH.t()).float(), -1)
    _policy_loss(log_p_TV.gather(1, batch.targets_T[:, None])[:, 0], batch).backward()
    return _gradients(hidden_TH, weight_VH)


def _bare_gemms(hidden_TH: Tensor, weight_VH: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """Run the three matrix products alone, in our formula's chunks: no loss, so no gradient to compare."""
    with torch.no_grad():
        dweight_VH, rows = torch.empty_like(weight_VH), min(DEFAULT_CHUNK_TOKENS, len(hidden_TH))
        buffer = torch.empty(rows, len(weight_VH), dtype=hidden_TH.dtype, device=hidden_TH.device)
        for chunk, hidden_cH in enumerate(hidden_TH.split(rows)):
            logits_cV = torch.mm(hidden_cH, weight_VH.t(), out=buffer[: len(hidden_cH)])
            torch.mm(logits_cV, weight_VH)
            dweight_VH.addmm_(logits_cV.t(), hidden_cH, beta=min(chunk, 1))
    return ()


def _projection_ours(hidden_TH: Tensor, weight_VH: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    grpo_loss(
        targets_T=batch.targets_T,
        cu_seqlens=batch.cu_seqlens,
        hidden_TH=hidden_TH,
        weight_VH=weight_VH,
        config=GRPO,
        advantage_S=batch.advantage_S,
    ).loss.backward()
    return _gradients(hidden_TH, weight_VH)


@functools.cache
def _liger_module() -> Any:
    return _peer("liger_kernel.chunked_loss", "LigerFusedLinearGRPOLoss")(
        beta=0.0, use_ref_model=False, loss_type="grpo"
    )


def _projection_liger(hidden_TH: Tensor, weight_VH: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    sequences, length = len(batch.advantage_S), batch.sequence_length
    mask_BL = torch.ones(sequences, length, device=hidden_TH.device)
    shaped_BLH, targets_BL = hidden_TH.view(sequences, length, -1), batch.targets_T.view(sequences, length)
    loss, _ = _liger_module()(shaped_BLH, weight_VH, targets_BL, mask_BL, batch.advantage_S)
    loss.backward()
    return _gradients(hidden_TH, weight_VH)


def _projection_cut(hidden_TH: Tensor, weight_VH: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """Run cross-entropy weighted by the advantage: on-policy, it has the same gradient."""
    linear_cross_entropy = _peer("cut_cross_entropy", "linear_cross_entropy")
    impl = "cce" if hidden_TH.is_cuda else "torch_compile"
    nll_T = linear_cross_entropy(hidden_TH, weight_VH, batch.targets_T, reduction="none", impl=impl)
    (nll_T * batch.advantage_T).mean().backward()
    return _gradients(hidden_TH, weight_VH)


def _projection_verl(hidden_TH: Tensor, weight_VH: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    linear_cross_entropy = _peer("verl.utils.kernel.linear_cross_entropy", "linear_cross_entropy")
    logprob_T, _ = linear_cross_entropy(hidden_TH[None], weight_VH, batch.targets_T[None], 1.0, "none")
    _policy_loss(logprob_T.view(-1), batch).backward()
    return _gradients(hidden_TH, weight_VH)


PROJECTION = (
    Formula("eager matmul, log_softmax", _projection_eager),
    Formula("selfemo grpo_loss, fused", _projection_ours),
    Formula("Liger fused_linear_grpo", _projection_liger, needs="liger_kernel"),
    Formula("cut-cross-entropy", _projection_cut, needs="cut_cross_entropy"),
    Formula("verl linear_cross_entropy", _projection_verl, needs="verl", device="cuda"),
    Formula("the three GEMMs alone", _bare_gemms),
)
WORKLOADS = {"logits": LOGITS, "projection": PROJECTION}
