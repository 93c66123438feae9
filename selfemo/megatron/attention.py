"""Compute causal attention over packed segments, several of which may continue one prompt.

The class fills the core_attention slot of a megatron-core layer spec. megatron-core's local
DotProductAttention rejects packed (thd) batches, and Transformer Engine's has no segments that
share keys; this class has both. A segment's queries are its own tokens. Its keys are rows of the
batch: those of the prompt it continues, if any, and its own. The rows are gathered before
attention, so each segment is ordinary causal attention aligned at the end (flash-attn's varlen call
on a GPU, else SDPA), and shared_rows.py sums a shared prompt's gradient over the segments that read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from selfemo.megatron.shared_rows import gather_rows

FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes that flash-attn accepts."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows of a micro-batch that attend to no others.

    They are one sample, or several behind one prompt.
    """

    rows: slice
    digest: bytes
    """Equal for pieces of the same tokens and segments."""
    alone: Segments
    """The piece as a batch of its own."""


@dataclass
class Segments(PackedSeqParams):
    """Packed segments, S of them.

    If prompts are shared, cu_seqlens_q and cu_seqlens_kv stay None: megatron-core would rotate
    tokens by their distance from each segment's start, and they must be rotated by their position
    ids.
    """

    query_bounds: torch.Tensor | None = None
    """int32 [S+1]: the start of each segment's queries among the T tokens."""
    key_rows: torch.Tensor | None = None
    """int64 [K]: the tokens that each segment attends to, segment by segment. None: each segment
    attends to its own.
    """
    key_bounds: torch.Tensor | None = None
    """int32 [S+1]: the start of each segment's keys among the K rows."""
    pieces: tuple[Piece, ...] = ()
    """The T tokens cut into pieces, if frozen layers keep their output of each."""


class PackedCausalAttention(torch.nn.Module):
    """Attention of each segment over its rows, with grouped-query heads and no bias.

    Raises:
        ValueError: dropout or context parallelism is asked for.
    """

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
            raise ValueError(
                "PackedCausalAttention does not split a sequence over ranks: parallel.context > 1 needs "
                "Transformer Engine"
            )
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout > 0:
            raise ValueError(
                f"PackedCausalAttention has no dropout, asked for {dropout}: set attention_dropout=0"
            )
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Segments | None = None,
    ) -> torch.Tensor:
        """Attend from each token to its prompt and to its segment up to itself.

        Args:
            query: [T, heads, D].
            key, value: [T, kv_heads, D].
            packed_seq_params: bounds of the segments; the mask arguments are unused.

        Returns:
            [T, heads * D].

        Raises:
            ValueError: the batch is not packed.
        """
        if (
            not isinstance(packed_seq_params, Segments)
            or packed_seq_params.query_bounds is None
            or packed_seq_params.key_bounds is None
        ):
            raise ValueError(
                "PackedCausalAttention takes packed batches only: pass Segments as packed_seq_params"
            )
        if packed_seq_params.key_rows is not None:
            key = gather_rows(key, packed_seq_params.key_rows)
            value = gather_rows(value, packed_seq_params.key_rows)
        attend = _flash_attention if query.is_cuda and query.dtype in FLASH_DTYPES else _segment_attention
        return attend(query, key, value, packed_seq_params, self.softmax_scale).reshape(query.shape[0], -1)


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    softmax_scale: float | None,
) -> torch.Tensor:
    """Return [T, heads, D] from flash-attn's varlen call.

    flash-attn aligns its causal mask at the end of queries and keys, as segments that continue a
    prompt need.
    """
    from flash_attn import flash_attn_varlen_func

    attended: torch.Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        segments.query_bounds,
        segments.key_bounds,
        segments.max_seqlen_q,
        segments.max_seqlen_kv,
        softmax_scale=softmax_scale,
        causal=True,
    )
    return attended


def _segment_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    softmax_scale: float | None,
) -> torch.Tensor:
    """Return [T, heads, D] from one SDPA call per segment."""
    assert segments.query_bounds is not None
    assert segments.key_bounds is not None
    queries, keys = (
        [end - begin for begin, end in pairwise(bounds.tolist())]
        for bounds in (segments.query_bounds, segments.key_bounds)
    )
    parts = zip(
        query.transpose(0, 1).split(queries, 1),
        key.transpose(0, 1).split(keys, 1),
        value.transpose(0, 1).split(keys, 1),
    )
    attended = []
    for q, k, v in parts:
        tokens, seen = q.shape[1], k.shape[1]
        mask = (
            None
            if tokens == seen
            else torch.ones(tokens, seen, dtype=torch.bool, device=q.device).tril_(seen - tokens)
        )
        attended.append(
            torch.nn.functional.scaled_dot_product_attention(
                q[None],
                k[None],
                v[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=softmax_scale,
                enable_gqa=True,
            )[0]
        )
    return torch.cat(attended, dim=1).transpose(0, 1)
