"""Test fused weight gradients with a linear that treats DDP's buffer as Transformer Engine's does."""

from __future__ import annotations

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from selfemo.config.layout import Layout
from selfemo.megatron.device import select_device
from selfemo.megatron.optimizer import fuse_weight_gradients
from selfemo.megatron.parallel import init_parallel, leave_parallel
from tests.helpers.distributed import DistributedRunner


class _Product(torch.autograd.Function):
    """Adds the weight's gradient to main_grad in fp32, says so and returns a dummy.

    Transformer Engine does so at the end of `_linear_backward` (2.20.2, pytorch/module/linear.py).
    """

    @staticmethod
    def forward(ctx, rows, weight, fuses):
        ctx.fuses, ctx.weight = fuses, weight
        ctx.save_for_backward(rows)
        return rows @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        (rows,), weight = ctx.saved_tensors, ctx.weight
        if not ctx.fuses:
            return gradient @ weight, gradient.t() @ rows, None
        weight.main_grad += gradient.t().float() @ rows.float()
        weight.grad_added_to_main_grad = True
        return gradient @ weight, torch.full_like(weight, torch.nan), None


class _Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 64 * 64).view(64, 64).bfloat16())
        self.fuse_wgrad_accumulation = False

    def forward(self, rows):
        return _Product.apply(rows, self.weight, self.fuse_wgrad_accumulation)


def _gradients() -> list[torch.Tensor]:
    """Return the fp32 gradient of eight micro-batches, unfused and fused, and the exact one."""
    init_parallel(Layout(), select_device(), seed=1)
    config = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=1, bf16=True)
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=False)
    found, exact = [], torch.zeros(64, 64, dtype=torch.float64)
    for fuses in (False, True):
        layer = _Linear()
        wrapped = DistributedDataParallel(config, ddp, torch.nn.Sequential(layer))
        if fuses:
            fuse_weight_gradients([wrapped.module])
        wrapped.zero_grad_buffer()
        for batch in range(8):
            rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(batch)).bfloat16()
            wrapped(rows).sum().backward()
            if fuses:
                exact += rows.double().sum(0).expand(64, 64)
        found.append(layer.weight.main_grad.clone())
    leave_parallel()
    return [*found, exact]


def test_fused_gradients_reach_the_buffer_once_and_are_not_rounded_to_bf16(
    distributed: DistributedRunner,
) -> None:
    unfused, fused, exact = distributed(1, _gradients, timeout_s=240)[0]
    assert (fused - exact).norm() / exact.norm() < 1e-6
    assert 1e-4 < (unfused - exact).norm() / exact.norm() < 2**-8


def test_layers_that_cannot_fuse_are_left_alone() -> None:
    plain = torch.nn.Linear(2, 2)
    able = torch.nn.Module()
    able.fuse_wgrad_accumulation = False
    fuse_weight_gradients([torch.nn.Sequential(plain, able)])
    assert able.fuse_wgrad_accumulation
    assert not hasattr(plain, "fuse_wgrad_accumulation")
