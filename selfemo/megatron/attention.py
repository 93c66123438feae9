"""Causal attention over packed sequences, for the core_attention slot of megatron-core's local layer spec.

megatron-core's local DotProductAttention rejects packed (thd) batches; this class takes them, one SDPA call per segment. GPUs run
Transformer Engine's attention instead, which takes packed batches itself (through flash-attn or cuDNN).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig


class PackedCausalAttention(torch.nn.Module):
    """Attention of each packed segment over itself; grouped-query heads; no bias; dropout and context parallelism are refused."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        if config.context_parallel_size > 1:
            raise ValueError("PackedCausalAttention does not split a sequence over ranks: parallel.context > 1 needs Transformer Engine")
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout > 0:
            raise ValueError(f"PackedCausalAttention has no dropout, asked for {dropout}: set attention_dropout=0")
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """query [T, heads, D], key and value [T, kv_heads, D] -> [T, heads * D], segments bounded by cu_seqlens_q [S+1]."""
        if packed_seq_params is None:
            raise ValueError("PackedCausalAttention takes packed batches only: pass packed_seq_params with qkv_format='thd'")
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        lengths = [end - begin for begin, end in pairwise(bounds)]
        heads_first = [x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)]
        segments = [
            torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, scale=self.softmax_scale, enable_gqa=True
            )[0]
            for q, k, v in zip(*heads_first)
        ]
        return torch.cat(segments, dim=1).transpose(0, 1).reshape(query.shape[0], -1)
