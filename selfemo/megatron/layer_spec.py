"""Choose the modules of a transformer layer: Transformer Engine's on GPU, megatron-core's local
ones on CPU.

Both specs describe the same mathematics. The local one differs from megatron-core's default in two
slots: packed attention (which replaces Transformer Engine's too if prompts are shared), and an
RMSNorm that allows sequence parallelism. WrappedTorchNorm refuses sequence parallelism, though it
only needs a mark on the norm's weight.
"""

from __future__ import annotations

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from selfemo.megatron.attention import PackedCausalAttention
from selfemo.megatron.device import Device


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, marked for sequence parallelism: finalize_model_grads then sums its gradient
    over tensor-parallel ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # megatron-private


def block_spec(
    config: TransformerConfig, device: Device, vp_stage: int | None = None, share_prompts: bool = False
) -> TransformerBlockSubmodules | ModuleSpec:
    """Return the decoder's spec for this rank's pipeline stage (and virtual stage).

    `share_prompts` puts PackedCausalAttention into Transformer Engine's layer as well: no other
    attention lets segments share keys.
    """
    if device.is_cuda:
        layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        if share_prompts:
            layer.submodules.self_attention.submodules.core_attention = PackedCausalAttention
        return layer
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedCausalAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=vp_stage), layer_norm=RMSNorm
    )
