"""Causal attention over packed sequences, for the core_attention slot of megatron-core's layer spec.

megatron-core's local DotProductAttention rejects packed (thd) batches. This class takes them on both devices: one SDPA call
per segment on CPU; flash-attn's variable-length kernel on GPU where the Transformer Engine module is not chosen.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig


class PackedCausalAttention(torch.nn.Module):
    """Attention of each packed segment over itself; grouped-query heads; no dropout, no bias."""

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
        if query.is_cuda:
            out = self._flash(query, key, value, packed_seq_params)
        else:
            out = self._per_segment(query, key, value, packed_seq_params)
        return out.reshape(query.shape[0], -1)

    def _per_segment(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedSeqParams) -> torch.Tensor:
        bounds = packed.cu_seqlens_q.tolist()
        lengths = [end - begin for begin, end in pairwise(bounds)]
        heads_first = [x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)]
        segments = [
            torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, scale=self.softmax_scale, enable_gqa=True
            )[0]
            for q, k, v in zip(*heads_first)
        ]
        return torch.cat(segments, dim=1).transpose(0, 1)

    def _flash(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedSeqParams) -> torch.Tensor:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            query,
            key,
            value,
            packed.cu_seqlens_q,
            packed.cu_seqlens_kv,
            packed.max_seqlen_q,
            packed.max_seqlen_kv,
            softmax_scale=self.softmax_scale,
            causal=True,
        )
