"""Checks arguments before any memory is written. Each failure is a ValueError with the argument and the
index.

Shapes and dtypes cost nothing. Values (targets inside the vocabulary, pointers that partition, finite
rewards) must be read from the device, so they are gathered and read together: one synchronisation per
call, none with `check_values=False`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

INTEGERS = (torch.int32, torch.int64)


class ValueChecks:
    """Collects conditions that no element may meet, and reads them from the device all at once."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []
        self._describe: list[Callable[[tuple[int, ...]], str]] = []
        self._bad: list[Tensor] = []

    def forbid(self, bad: Tensor, describe: Callable[[tuple[int, ...]], str]) -> None:
        """Fail if any element of the boolean tensor `bad` is true. `describe` turns the first such
        index into a message.
        """
        self._bad.append(bad)
        self._found.append(bad.any())
        self._describe.append(describe)

    def raise_first(self) -> None:
        """Raise ValueError for the first violated condition, in the order they were added."""
        if not self._found:
            return
        for position, found in enumerate(torch.stack(self._found).tolist()):
            if found:
                index = tuple(int(i) for i in self._bad[position].nonzero()[0])
                raise ValueError(self._describe[position](index))


def require_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `tensor` has the expected shape; None in `expected` allows any size."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        want is not None and want != got for want, got in zip(expected, shape)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{name} has shape {list(shape)}: expected [{wanted}]")


def require_float(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` holds floating-point numbers."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype}: expected a floating-point dtype")


def require_integers(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` is int32 or int64."""
    if tensor.dtype not in INTEGERS:
        raise ValueError(f"{name} is {tensor.dtype}: expected int32 or int64")


def require_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raise ValueError unless `tensor` is on `device`."""
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}: expected {device}, where the other arguments are")


def check_logits(name: str, logits_TV: Tensor) -> None:
    """Raise ValueError unless the logits are a non-empty float matrix whose rows are contiguous."""
    require_shape(name, logits_TV, (None, None))
    require_float(name, logits_TV)
    if 0 in logits_TV.shape:
        raise ValueError(
            f"{name} has shape {list(logits_TV.shape)}: expected at least one token and one column"
        )
    if logits_TV.stride(1) != 1:
        raise ValueError(
            f"{name} has stride {logits_TV.stride(1)} along the vocabulary: expected 1 (call .contiguous())"
        )


def check_targets(
    checks: ValueChecks, targets_T: Tensor, tokens: int, vocab_size: int, device: torch.device
) -> None:
    """Check shape and dtype now; leave the values (0 <= id < vocab_size) to `checks`."""
    require_shape("targets_T", targets_T, (tokens,))
    require_integers("targets_T", targets_T)
    require_device("targets_T", targets_T, device)
    checks.forbid(
        (targets_T < 0) | (targets_T >= vocab_size),
        lambda at: (
            f"targets_T[{at[0]}] is {int(targets_T[at])}: expected a token id from 0 to {vocab_size - 1}"
        ),
    )


def check_partition(
    checks: ValueChecks, name: str, pointer: Tensor, total: int, what: str, device: torch.device
) -> None:
    """Check that `pointer` runs 0 < ... < total: consecutive, non-empty pieces that cover `total`
    elements exactly.
    """
    require_shape(name, pointer, (None,))
    require_integers(name, pointer)
    require_device(name, pointer, device)
    if pointer.numel() < 2:
        raise ValueError(
            f"{name} has {pointer.numel()} entries: expected at least 2, the borders of one {what}"
        )
    last = pointer.numel() - 1
    checks.forbid(pointer[:1] != 0, lambda _: f"{name}[0] is {int(pointer[0])}: expected 0")
    checks.forbid(
        pointer[1:] <= pointer[:-1],
        lambda at: (
            f"{name}[{at[0] + 1}] is {int(pointer[at[0] + 1])} after {int(pointer[at[0]])}: {what} "
            f"{at[0]} would be empty"
        ),
    )
    checks.forbid(
        pointer[-1:] != total,
        lambda _: f"{name}[{last}] is {int(pointer[-1])}: expected {total}, so that all is covered",
    )


def check_finite(checks: ValueChecks, name: str, tensor: Tensor) -> None:
    """Forbid NaN and infinity in `tensor`."""
    checks.forbid(
        ~tensor.isfinite(),
        lambda at: f"{name}[{', '.join(map(str, at))}] is {float(tensor[at])}: expected a finite number",
    )


def check_vector(name: str, tensor: Tensor, length: int, device: torch.device) -> None:
    """Check a float tensor that holds one number per token, sequence, group or component."""
    require_shape(name, tensor, (length,))
    require_float(name, tensor)
    require_device(name, tensor, device)


def check_main_grad(main_VH: Tensor | None, weight_VH: Tensor | None) -> None:
    """Check an optional fp32 tensor shaped like the output weight, which must then be given."""
    if main_VH is None:
        return
    if weight_VH is None:
        raise ValueError("weight_main_grad_VH is given without weight_VH")
    require_shape("weight_main_grad_VH", main_VH, tuple(weight_VH.shape))
    require_device("weight_main_grad_VH", main_VH, weight_VH.device)
    if main_VH.dtype != torch.float32:
        raise ValueError(f"weight_main_grad_VH is {main_VH.dtype}: expected torch.float32")


def check_mask(mask_T: Tensor | None, tokens: int, device: torch.device) -> None:
    """Check an optional boolean tensor that holds one flag per token."""
    if mask_T is not None:
        require_shape("mask_T", mask_T, (tokens,))
        require_device("mask_T", mask_T, device)
        if mask_T.dtype != torch.bool:
            raise ValueError(f"mask_T is {mask_T.dtype}: expected torch.bool")
