"""Freezes the lowest layers and the embedding (train.frozen_layers): they run without a graph.

Frozen parameters want no gradient, so Megatron's DDP gives them no buffer and its optimizer no state. That
alone would not keep the backward pass, or recomputation, from going through their layers: megatron-core marks
what a pipeline stage receives as wanting a gradient. So a chunk's frozen layers run first, under no_grad, and
the others start from their output. The stage before still waits for a gradient and is sent zeros, which reach
no parameter.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_block import TransformerBlock

from selfemo import __version__ as selfemo_version
from selfemo.config.schema import TrainConfig
from selfemo.megatron.attention import Piece
from selfemo.megatron.frozen_store import FrozenStore
from selfemo.models.architecture import Architecture
from selfemo.process.arithmetic import arithmetic

MASTERS = "fp32_from_fp16_params"  # megatron-private
"""Where a bf16 optimizer keeps its fp32 weights, a list per parameter group."""


class FrozenOutputs:
    """Keeps what the frozen layers made of each piece, the last used ones within a limit of bytes.

    A piece is computed alone, so that its rows do not depend on its neighbours in a micro-batch,
    and a run that is resumed with nothing kept computes the same bits.
    """

    def __init__(self, limit_bytes: int, store: FrozenStore | None = None) -> None:
        """Keep nothing yet.

        Args:
            limit_bytes: most bytes of rows in memory.
            store: keeps all rows on disk besides, for this run and others.
        """
        self.limit_bytes, self.store = limit_bytes, store
        self.held_bytes = 0
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def find(self, piece: Piece, device: torch.device) -> torch.Tensor | None:
        """Return the kept rows [t, 1, H] of a piece, or None."""
        if (rows := self._kept.get(piece.digest)) is not None:
            self._kept.move_to_end(piece.digest)
        elif self.store and (rows := self.store.find(piece.digest, device)) is not None:
            self._hold(piece, rows)
        return rows

    def keep(self, piece: Piece, rows: torch.Tensor) -> None:
        """Keep the rows [t, 1, H] of a piece that `find` did not have."""
        self._hold(piece, rows)
        if self.store:
            self.store.keep(piece.digest, rows)

    def _hold(self, piece: Piece, rows: torch.Tensor) -> None:
        """Hold rows in memory, in place of those that were not used for longest."""
        if rows.nbytes > self.limit_bytes:
            return
        self._kept[piece.digest] = rows
        self.held_bytes += rows.nbytes
        while self.held_bytes > self.limit_bytes:
            self.held_bytes -= self._kept.popitem(last=False)[1].nbytes

    def forget(self) -> None:
        """Drop everything: the frozen layers have got other weights."""
        self._kept.clear()
        self.held_bytes = 0
        if self.store:
            self.store.forget()


def frozen_outputs(architecture: Architecture, train: TrainConfig) -> FrozenOutputs:
    """Make what a model's frozen output is kept in: memory, and train.frozen_cache_dir if it is set."""
    store = None
    if train.frozen_cache_dir:
        decides = (architecture, train.dtype, train.frozen_layers, train.attention_backend)
        # megatron.core.__version__ ends in the commit of whatever repository the environment lies in
        programs = (selfemo_version, version("megatron-core"), arithmetic())
        store = FrozenStore(Path(train.frozen_cache_dir), repr((decides, programs)))
    return FrozenOutputs(train.frozen_cache_bytes, store)


def freeze(chunk: GPTModel, layers: int, outputs: FrozenOutputs) -> None:
    """Freeze the embedding and the model's lowest `layers` layers, as far as `chunk` holds them (0: nothing).

    The output layer of a tied model is the embedding, so it is frozen too. Call this before DDP wraps it.

    Args:
        outputs: where the frozen layers' output is kept, for batches that are cut into pieces.
    """
    if layers == 0:
        return
    frozen = [layer for layer in chunk.decoder.layers if layer.layer_number <= layers]
    for layer in frozen:
        layer.requires_grad_(False)
    if chunk.pre_process:
        chunk.embedding.requires_grad_(False)
    if chunk.post_process and chunk.share_embeddings_and_output_weights:
        chunk.shared_embedding_or_output_weight().requires_grad_(False)
    if outputs.store:
        outputs.store.watch(weight for weight in chunk.parameters() if not weight.requires_grad)
    if frozen:
        chunk.decoder.forward = _FrozenFirst(chunk.decoder, len(frozen), outputs)


def without_frozen(state: dict[str, Any], layers: int) -> dict[str, Any]:
    """Count stacked layers of an optimizer's sharded state from the lowest trained one.

    megatron-core stores the state of a parameter of all layers as one tensor and refuses one with gaps.
    """

    def moved(part: Any) -> Any:
        if isinstance(part, ShardedTensorFactory):
            build = part.build_fn
            return replace(part, build_fn=lambda *given: dict_list_map_outplace(moved, build(*given)))
        if isinstance(part, ShardedTensor) and part.prepend_axis_num:  # the axis of layers, which comes first
            assert part.axis_fragmentations is not None
            return replace(
                part,
                global_shape=(part.global_shape[0] - layers, *part.global_shape[1:]),
                global_offset=(part.global_offset[0] - layers, *part.global_offset[1:]),
                axis_fragmentations=(part.axis_fragmentations[0] - layers, *part.axis_fragmentations[1:]),
            )
        return part

    if layers == 0:
        return state
    masters = state.get(MASTERS)
    if masters is not None and not any(masters):
        # Of a stage that trains nothing: among rank 0's plain values they would clash with others' tensors.
        state = {**state, MASTERS: LocalNonpersistentObject(masters)}
    stored: dict[str, Any] = dict_list_map_outplace(moved, state)
    return stored


class _FrozenFirst:
    """Runs the forward pass of a block whose lowest layers are frozen."""

    def __init__(self, block: TransformerBlock, count: int, outputs: FrozenOutputs) -> None:
        self._block, self._frozen, self._outputs = block, list(block.layers[:count]), outputs
        # A second block over the same modules: recomputation indexes its layers again in the backward pass.
        self._rest = copy.copy(block)
        self._rest._modules = {**block._modules, "layers": block.layers[count:]}
        self._rest.num_layers_per_pipeline_rank = len(block.layers) - count  # megatron-private

    def __call__(self, hidden_states: torch.Tensor | None, **arguments: Any) -> torch.Tensor:
        """Return [T, 1, H] after this block's layers, from `hidden_states` or the stage before's output."""
        pieces: tuple[Piece, ...] = arguments["packed_seq_params"].pieces
        if not torch.is_grad_enabled() and not pieces:
            return type(self._block).forward(self._block, hidden_states, **arguments)
        received = hidden_states if self._block.pre_process else self._block.input_tensor
        assert received is not None
        with torch.no_grad():
            if pieces:
                output = torch.cat([self._piece(piece, received, arguments) for piece in pieces])
            else:
                output = self._lowest(received.detach(), arguments)
        if len(self._rest.layers):
            # A recomputed layer is in the graph through its input alone.
            output = output.detach().requires_grad_(self._rest.config.recompute_granularity is not None)
            self._rest.set_input_tensor(output)
            output = self._rest(hidden_states=output, **arguments)
        return _WithoutInputGradient.apply(received, output) if received.requires_grad else output

    def _lowest(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        for layer in self._frozen:
            hidden_states, _ = layer(hidden_states=hidden_states, **arguments)
        return hidden_states

    def _piece(self, piece: Piece, received: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """Return the frozen layers' output of a piece, computed at its first use."""
        rows = self._outputs.find(piece, received.device)
        if rows is None:
            rotary = arguments["rotary_pos_emb"]
            if piece.alone.cu_seqlens_q is None:  # one row per token of the batch, see CompletionGPTModel
                rotary = rotary[piece.rows]
            alone = {**arguments, "packed_seq_params": piece.alone, "rotary_pos_emb": rotary}
            rows = self._lowest(received[piece.rows].detach(), alone)
            self._outputs.keep(piece, rows)
        return rows


class _WithoutInputGradient(torch.autograd.Function):
    """Passes a block's output on as it is; the tensor that the block received gets a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, received: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, doutput: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(doutput), doutput
