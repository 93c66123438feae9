"""Make a bf16 engine on CPU whose matrices keep their plain layout, as on a GPU.

Direct transfers are tested with it.
"""

from __future__ import annotations

from typing import Any

import torch


def keep_bf16_matrices_plain() -> None:
    """Make vLLM in this process treat bf16 as on a CPU without bf16 instructions: no kernel with
    prepacked matrices.

    Its own fallback (torch's linear) then computes from the live parameter. Other dtypes are
    untouched.
    """
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    if getattr(_custom_ops.create_onednn_mm, "keeps_bf16_plain", False):
        return
    create, check = _custom_ops.create_onednn_mm, utils.check_cpu_sgl_kernel

    def create_onednn_mm(weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("bf16 is not supported")  # oneDNN's error there
        return create(weight, *args, **kwargs)

    create_onednn_mm.keeps_bf16_plain = True
    _custom_ops.create_onednn_mm = create_onednn_mm
    utils.check_cpu_sgl_kernel = lambda n, k, dtype: dtype != torch.bfloat16 and check(n, k, dtype)
