"""Run AdamW on CPU with the state layout of Transformer Engine's FusedAdam: `step` in the parameter
group, two moments in the state.

torch's own AdamW keeps a step tensor per parameter, which megatron-core's DistributedOptimizer
cannot reshard on load. With FusedAdam's layout a checkpoint written on CPU has the keys of one
written on GPU and loads into any layout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch

PART_ELEMENTS = 131_072
"""Elements that are updated at a time: with their moments 2 MiB, which stay in cache over the operations."""


class CpuFusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), part by part of each parameter.

    torch's fused kernel rounds otherwise at the end of a tensor than inside it, so that layouts, which cut
    parameters in other places, would differ by more than these operations do.

    Raises:
        ValueError: adam_w_mode=False.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        if not adam_w_mode:
            raise ValueError("adam_w_mode=False (coupled L2 decay) is not implemented on CPU")
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": True},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter that has a gradient, once."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1  # of an empty group too, as FusedAdam since 2.20
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        beta1, beta2 = group["betas"]
        decay = 1 - group["lr"] * group["weight_decay"]
        scale = (1 - beta2 ** group["step"]) ** 0.5
        rate = -group["lr"] / (1 - beta1 ** group["step"])
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            moments = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
            parts = (tensor.view(-1).split(PART_ELEMENTS) for tensor in (p, p.grad, *moments))
            for weights, gradient, first, second in zip(*parts, strict=True):
                weights.mul_(decay)
                first.lerp_(gradient, 1 - beta1)
                second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                weights.addcdiv_(first, second.sqrt().div_(scale).add_(group["eps"]), value=rate)


def install() -> None:
    """Make megatron-core's optimizer factory build CpuFusedAdam in place of Transformer Engine's
    FusedAdam.
    """
    factory: Any = importlib.import_module("megatron.core.optimizer")
    distributed: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    factory.Adam = distributed.Adam = CpuFusedAdam  # megatron-private
    factory.USING_PYTORCH_OPTIMIZER = False  # megatron-private
    distributed.HAVE_APEX_OR_TE = True  # megatron-private
