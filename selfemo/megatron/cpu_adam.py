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
from torch.optim.adamw import adamw


class CpuFusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), by torch's fused CPU kernel, which
    reads and writes a parameter and its moments once.

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
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        gradients = [p.grad for p in params]
        first = [self.state[p]["exp_avg"] for p in params]
        second = [self.state[p]["exp_avg_sq"] for p in params]
        beta1, beta2 = group["betas"]
        done = torch.tensor(float(group["step"] - 1))  # the kernel counts this step itself, per parameter
        adamw(
            params,
            gradients,
            first,
            second,
            max_exp_avg_sqs=[],
            state_steps=[done.clone() for _ in params],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def install() -> None:
    """Make megatron-core's optimizer factory build CpuFusedAdam in place of Transformer Engine's
    FusedAdam.
    """
    factory: Any = importlib.import_module("megatron.core.optimizer")
    distributed: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    factory.Adam = distributed.Adam = CpuFusedAdam  # megatron-private
    factory.USING_PYTORCH_OPTIMIZER = False  # megatron-private
    distributed.HAVE_APEX_OR_TE = True  # megatron-private
