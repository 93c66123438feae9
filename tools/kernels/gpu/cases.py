"""Lists the kernels' correctness cases, which hold on any device and for both implementations.

On a GPU they see what no other test does: the compiled kernels' layout, races, rounding of bf16 stores
and real sizes. A case raises Mismatch, or returns a line that tells its largest error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from selfemo.kernels import LossConfig, token_logprobs
from selfemo.kernels.backend import Impl
from tests.helpers import kernel_oracle as oracle
from tests.helpers.kernel_cases import PRESETS, Case, make_case, run, truth

QWEN3_VOCABULARY = 151_936
FP32_GRADIENT, BF16_GRADIENT = 5e-6, 1e-2
"""Bounds on a gradient's error, as a share of its largest element; bf16 resolves 2^-8, and its stores are
truncated in Triton's interpreter."""


class Mismatch(Exception):
    """A kernel's result is not the oracle's; the message says which and by how much."""


@dataclass(frozen=True)
class Place:
    """The device and implementation that the cases run on."""

    device: str
    impl: Impl
    is_small: bool
    """Whether vocabularies stay small, for a CPU."""

    @property
    def logprob_bound(self) -> float:
        """Bound on the error of a log-probability or entropy; a GPU's exp and log are approximations."""
        return 1e-6 if self.device == "cpu" else 5e-6


def within(what: str, error: float, bound: float) -> float:
    """Return the error if it is within the bound.

    Raises:
        Mismatch: it is not, or it is NaN.
    """
    if not error <= bound:
        raise Mismatch(f"{what}: {error:.2e}, at most {bound:.0e} was expected")
    return error


def require(what: str, holds: bool | Tensor) -> None:
    """Raise Mismatch unless `holds` is true."""
    if not bool(holds):
        raise Mismatch(what)


def moved(case: Case, device: str) -> Case:
    """Copy the case's tensors to a device."""
    tensors = {field.name: getattr(case, field.name) for field in fields(case)}
    return replace(
        case, **{name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
    )


def check_loss(place: Place, case: Case, config: LossConfig, on_policy: bool = False) -> str:
    """Compare loss, log-probabilities, entropies and gradient with the oracle's on the same device."""
    case, bound = moved(case, place.device), place.logprob_bound
    expected = truth(case, config, on_policy)
    logits_TV = case.logits_TV.clone().requires_grad_()
    logits_TV.data[~case.mask_T] = torch.nan  # rows that may not be read
    result = run(case, config, logits_TV, on_policy, impl=place.impl)
    (2.0 * result.loss).backward()
    assert logits_TV.grad is not None
    found, wanted = float(result.loss.detach()), float(expected.loss)
    within("loss", abs(found - wanted) / max(1.0, abs(wanted)), bound)
    errors = [
        within(name, oracle.worst(got_T, want_T.where(case.mask_T, 0.0)), bound)
        for name, got_T, want_T in (
            ("logprob", result.logprob_T, expected.logprob_T),
            ("entropy", result.entropy_T, expected.entropy_T),
        )
    ]
    error = oracle.worst_of_scale(logits_TV.grad / 2, expected.dlogits_TV)
    within("gradient", error, FP32_GRADIENT if case.logits_TV.dtype == torch.float32 else BF16_GRADIENT)
    require("padding has a gradient", (logits_TV.grad[:, case.vocab_size :] == 0).all())
    return f"logprob {errors[0]:.1e}, entropy {errors[1]:.1e}, gradient {error:.1e}"


def check_width(place: Place, columns: int, dtype: torch.dtype) -> str:
    """Compare log-probability, entropy and gradient for a vocabulary of any width."""
    logits_TV = (
        torch.randn(3, columns, generator=torch.Generator().manual_seed(1)).to(place.device, dtype) * 3
    )
    targets_T = torch.tensor([0, columns - 1, columns // 2], device=place.device)
    truth_TV = logits_TV.double().requires_grad_()
    logprob_T, entropy_T = oracle.distribution(truth_TV, targets_T, 1.0, None)
    (logprob_T.sum() - 2 * entropy_T.sum()).backward()
    logits_TV.requires_grad_()
    got = token_logprobs(logits_TV, targets_T.int(), impl=place.impl)
    (got.logprob_T.sum() - 2 * got.entropy_T.sum()).backward()
    assert logits_TV.grad is not None
    assert truth_TV.grad is not None
    within("logprob", oracle.worst(got.logprob_T.detach(), logprob_T.detach()), place.logprob_bound)
    within("entropy", oracle.worst(got.entropy_T.detach(), entropy_T.detach()), place.logprob_bound)
    bound = FP32_GRADIENT if dtype == torch.float32 else BF16_GRADIENT
    error = float((logits_TV.grad.double() - truth_TV.grad).abs().max())
    return f"gradient {within('gradient', error, bound):.1e}"


def loss_cases(place: Place) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield every preset in both dtypes on and off policy, and the vocabularies that have to work."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    sizes = {"lengths": (2, 1, 3), "columns": 203, "vocab_size": 190} if place.is_small else {}
    for name, config in PRESETS.items():
        for title, dtype in dtypes.items():
            case = make_case(dtype=dtype, temperature=config.temperature, **sizes)  # type: ignore[arg-type]
            for policy in ("off policy", "on policy"):
                yield (
                    f"{name}, {title}, {policy}",
                    partial(check_loss, place, case, config, policy == "on policy"),
                )
    widths = (1, 2, 17, 4097) if place.is_small else (1, 2, 17, 4096, 4097, 151_935, QWEN3_VOCABULARY)
    for title, dtype in dtypes.items():
        for columns in widths:
            yield f"V = {columns}, {title}", partial(check_width, place, columns, dtype)
        if place.is_small:
            continue
        for vocab_size in (QWEN3_VOCABULARY, 151_669):
            case = make_case((20, 1, 43), QWEN3_VOCABULARY, vocab_size, dtype, shift=-10.0, scale=1.0)
            config = LossConfig.preset("self_grpo", entropy_weight=0.01)
            yield (
                f"V = {QWEN3_VOCABULARY}, {vocab_size} real, {title}",
                partial(check_loss, place, case, config),
            )
    for shift in (300.0, -300.0):
        case = make_case((3, 2), 1003, 1003, shift=shift)
        yield f"logits around {shift:.0f}", partial(check_loss, place, case, PRESETS["self_grpo"])
    case = make_case((300, 1, 500) if not place.is_small else (3, 1, 2), 4097, 4000, seed=5)
    yield "sequences of many blocks", partial(check_loss, place, case, PRESETS["everything"])
