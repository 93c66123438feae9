"""Compute Megatron's logits for a few packed sequences of different lengths, on a rank of any layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from selfemo.config.schema import ParallelConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.output_layer import completion_logits
from selfemo.megatron.packing import MicroBatch, pack
from selfemo.megatron.parallel import pipeline_group, tensor_group
from selfemo.weights.load import load_hf_weights
from tests.helpers.megatron_rank import megatron_chunks
from tests.helpers.tiny_model import VOCAB_SIZE

LENGTHS = (1, 7, 30, 12)
TOLERANCE = 1e-5
"""Largest difference between our logits and those of transformers, in fp32."""


def sequences() -> list[list[int]]:
    """Draw token ids; the last of each sequence is only predicted."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB_SIZE, (length + 1,), generator=generator).tolist() for length in LENGTHS]


def logits(hf_dir: str, parallel: ParallelConfig) -> torch.Tensor:
    """Compute logits [N, V] of every position of every sequence, over the whole vocabulary, on
    every rank.
    """
    samples = [TrainingSample(prompt_ids=(ids[0],), completion_ids=tuple(ids[1:])) for ids in sequences()]
    with megatron_chunks(Path(hf_dir), parallel) as (chunks, architecture, layout), torch.no_grad():
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.sizes.tensor)
        batch = pack(samples, range(len(samples)), layout.sizes.tensor, torch.device("cpu"))

        def forward_step(
            batches: Iterator[MicroBatch], model: torch.nn.Module
        ) -> tuple[torch.Tensor, Callable[..., object]]:
            given = next(batches)
            output = model(
                given.token_ids_T[None],
                given.position_ids_T[None],
                None,
                packed_seq_params=given.packed_seq_params,
                loss_mask=given.loss_mask_T[None],
                output_processor=completion_logits,
            )
            zero = torch.zeros(())
            return output, lambda logits: (zero, torch.ones((), dtype=torch.int), {"logits": logits[0]})

        count = layout.sizes.pipeline  # the interleaved schedule needs a multiple of the stages
        collected = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter([batch] * count) for _ in chunks]
            if len(chunks) > 1
            else iter([batch] * count),
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=count,
            seq_length=batch.token_ids_T.numel(),  # the interleaved schedule exchanges tensors of this shape
            micro_batch_size=1,
            forward_only=True,
        )
        whole = [torch.empty(0)]
        if layout.is_last_stage:
            shards = [torch.empty(0)] * layout.sizes.tensor
            dist.all_gather_object(shards, collected[0]["logits"], group=tensor_group())
            whole = [torch.cat(shards, dim=-1)[:, : architecture.vocab_size]]
        dist.broadcast_object_list(whole, group=pipeline_group(), group_src=layout.sizes.pipeline - 1)
        return whole[0]
