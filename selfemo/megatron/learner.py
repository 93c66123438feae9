"""Train the model: pack samples, run Megatron's schedule and take optimizer steps.

Callers see samples in and statistics out; layouts, micro-batches and process groups stay inside.
Every rank calls every method, with the same samples or with its part of a DealtBatch: each takes its
data-parallel share of the micro-batches and its context-parallel part of each, and results that
concern the whole batch are reduced to every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from selfemo.config.schema import TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import BatchCounts, LossConfig
from selfemo.megatron import losses
from selfemo.megatron.allocated import allocated_bytes
from selfemo.megatron.batch import DealtBatch, shares_prompts, whole_batch
from selfemo.megatron.context import ContextShare
from selfemo.megatron.device import Device
from selfemo.megatron.frozen import frozen_outputs
from selfemo.megatron.largest_gap import largest_over_ranks
from selfemo.megatron.model import DTYPES, CompletionGPTModel, build_chunks, transformer_config
from selfemo.megatron.offload import HostMemory
from selfemo.megatron.optimizer import (
    build_optimizer,
    counting_empty_groups,
    set_hyperparameters,
    wrap_chunks,
)
from selfemo.megatron.output_layer import LossAtOutput, completion_loss
from selfemo.megatron.packing import MicroBatch, longest_tokens, pack
from selfemo.megatron.parallel import RankLayout, copies_group, pipeline_group, tensor_group
from selfemo.megatron.step_stats import PolicyStats, StepStats
from selfemo.models.architecture import Architecture
from selfemo.process import watchdog
from selfemo.weights.gather import WeightGroups, hf_tensors
from selfemo.weights.load import load_hf_weights

Batch = Sequence[TrainingSample] | DealtBatch
"""The samples of a step: all of them, the same on every rank, or this rank's part of a dealt batch."""


class Learner:
    """The model, Megatron's DDP around it and the optimizer, in one parallel layout."""

    optimizer: MegatronOptimizer

    def __init__(
        self,
        architecture: Architecture,
        train: TrainConfig,
        layout: RankLayout,
        device: Device,
        max_length: int,
        temperature: float,
    ) -> None:
        """Build the model, its weights not read yet, and the optimizer of the first stage."""
        self.architecture, self.train, self.layout, self.device = architecture, train, layout, device
        self.share_prompts = share = shares_prompts(train, layout)
        self.transformer_config = transformer_config(
            architecture, layout.sizes, DTYPES[train.dtype], device, share, train.attention_backend
        )
        self.frozen_outputs = frozen_outputs(architecture, train)
        self.chunks: list[CompletionGPTModel] = build_chunks(
            architecture,
            self.transformer_config,
            layout,
            max_length,
            device,
            share,
            train.frozen_layers,
            self.frozen_outputs,
        )
        fuses = train.fuse_weight_gradients
        self.wrapped = wrap_chunks(self.chunks, self.transformer_config, layout.sizes, fuses)
        # Losses are weighted sums, so gradients are summed and never divided by a token count.
        self.transformer_config.finalize_model_grads_func = lambda chunks, _tokens, **kwargs: (
            finalize_model_grads(chunks, None, **kwargs)
        )
        self.context = losses.LossContext(
            vocab_size=architecture.vocab_size,
            tensor_group=tensor_group() if layout.sizes.tensor > 1 else None,
            temperature=temperature,
        )
        self._host_memory = HostMemory(device, moves_state=self.transformer_config.bf16)
        self.begin_stage()

    def begin_stage(self) -> None:
        """Build a fresh optimizer: SFT and SELF-GRPO share weights, not moments.

        The old one is let go first: both together, with fp32 weights and two moments each, may not fit.
        """
        self.restore()
        self.transformer_config.grad_scale_func = None
        if hasattr(self, "optimizer"):
            del self.optimizer
        for parameter in self._parameters():
            if hasattr(parameter, "main_param"):
                del parameter.main_param  # megatron-private: the old optimizer's fp32 copy
        self.optimizer = build_optimizer(
            self.wrapped, self.train, self.layout.sizes, self.transformer_config.bf16
        )
        self.transformer_config.grad_scale_func = self.optimizer.scale_loss

    @property
    def has_optimizer_state(self) -> bool:
        """True once a step has been taken in this stage: there are moments, if not on a rank that trains
        nothing.
        """
        return any(group.get("step") for group in self.optimizer.param_groups)

    def offload(self) -> None:
        """Free gradients and move optimizer state to host memory, if train.offload_during_rollout is set."""
        if self.train.offload_during_rollout:
            self._host_memory.offload(self.wrapped, self.optimizer)

    def restore(self) -> None:
        """Bring back the state that `offload` moved, if it did."""
        if self._host_memory.is_used:
            self._host_memory.restore(self.wrapped, self.optimizer)

    def plan(self, batch: Batch, min_tokens: int = 0) -> list[MicroBatch]:
        """Pack this rank's share of the batch; every rank gets the same number of micro-batches.

        train.max_tokens_per_microbatch caps a whole micro-batch, over the context ranks that share
        it, before padding.

        Args:
            min_tokens: shorter micro-batches are padded to this.

        Raises:
            UserError: a sample is longer than train.max_tokens_per_microbatch.
        """
        dealt = self._dealt(batch)
        context = ContextShare(self.layout.sizes.context, self.layout.context_rank)
        tensor_size, device = self.layout.sizes.tensor, self.device.torch_device
        pieces = self.train.frozen_cache_bytes > 0

        def packed(min_tokens: int) -> list[MicroBatch]:
            return [
                pack(
                    dealt.samples, mine, tensor_size, device, min_tokens, context, self.share_prompts, pieces
                )
                for mine in dealt.micro_batches
            ]

        batches = packed(min_tokens)
        if self.layout.sizes.virtual_pipeline == 1:
            return batches
        # The interleaved schedule exchanges tensors of one fixed shape.
        return packed(longest_tokens(batches))

    def _dealt(self, batch: Batch) -> DealtBatch:
        return batch if isinstance(batch, DealtBatch) else whole_batch(batch, self.train, self.layout)

    def sft_step(self, batch: Batch, learning_rate: float) -> StepStats:
        """Take one step of next-token loss on the completions.

        The loss is the mean over completions of their token means.
        """
        dealt = self._dealt(batch)
        count = dealt.counts.sequences
        collected = self._forward_backward(
            self.plan(dealt), lambda packed, _: losses.sft_loss(packed, self.context, count)
        )
        sums = self._reduce(collected, losses.SUMS, width=2)
        return self._optimizer_step(float(sums[0]), learning_rate, dealt.counts.tokens)

    def logprobs(self, plan: Sequence[MicroBatch]) -> list[torch.Tensor]:
        """Compute logprob_N of this rank's completion tokens under the current weights.

        Returns:
            One tensor per micro-batch; an empty list off the last pipeline stage.
        """
        with torch.no_grad():
            collected = self._forward_backward(
                plan, lambda batch, _: losses.logprob_pass(batch, self.context), forward_only=True
            )
        return [entry[losses.LOGPROBS] for entry in collected]

    def policy_step(
        self,
        batch: Batch,
        plan: Sequence[MicroBatch],
        loss_config: LossConfig,
        learning_rate: float,
        reference: Sequence[torch.Tensor] = (),
        old: Sequence[torch.Tensor] = (),
        counts: BatchCounts | None = None,
        supervised: Batch = (),
    ) -> PolicyStats:
        """Take one SELF-GRPO step, towards rewards and supervised examples at once.

        Args:
            reference, old: logprobs(plan) under the reference and the rollout weights; empty: none.
            counts: of the whole batch, if `batch` is a list without samples of weight 0; None counts it.
            supervised: examples whose SFT loss, by their weights, is added to the policy loss.

        Raises:
            ValueError: loss_config asks for a ratio per sequence, but context ranks each see only a
                part of a sequence.
        """
        if loss_config.ratio_level == "sequence" and self.layout.sizes.context > 1:
            raise ValueError(
                f"ratio_level='sequence' needs whole sequences, but {self.layout.sizes.context} context "
                "ranks share each"
            )
        dealt, taught = self._dealt(batch), self._dealt(supervised)
        counts, examples = counts or dealt.counts, taught.counts.sequences
        plan, taught_plan = self._alike(dealt, plan, taught)

        def loss(packed: MicroBatch, index: int) -> losses.LossFunction:
            if index >= len(plan):
                return losses.supervised_loss(packed, taught, self.context)
            ref, previous = (logprobs[index] if logprobs else None for logprobs in (reference, old))
            return losses.policy_loss(packed, dealt.samples, self.context, loss_config, counts, ref, previous)

        collected = self._forward_backward([*plan, *taught_plan], loss)
        sums = self._reduce(collected, losses.SUMS, width=len(losses.POLICY_SUMS))
        gap, at = largest_over_ranks(
            [entry[losses.LARGEST_GAP] for entry in collected if losses.LARGEST_GAP in entry],
            self.device.torch_device,
        )
        supervised_loss = float(self._reduce(collected, losses.SUPERVISED, width=1)[0]) if examples else 0.0
        mean = {
            name: float(value) / max(1, dealt.trained_tokens) for name, value in zip(losses.POLICY_SUMS, sums)
        }
        return PolicyStats(
            step=self._optimizer_step(float(sums[0]) + supervised_loss, learning_rate, counts.tokens),
            kl=mean["kl"],
            clipped_share=mean["clipped_low"] + mean["clipped_high"] + mean["dual_clipped"],
            entropy=mean["entropy"],
            ratio_mean=mean["ratio"],
            logprob_gap_max=gap,
            largest_gap=at,
            logprob_gap_mean=mean["rollout_gap"],
            clipped_low_share=mean["clipped_low"],
            clipped_high_share=mean["clipped_high"],
            importance_weight_mean=mean["importance_weight"],
            importance_truncated_share=mean["importance_truncated"],
            logprob_mean=mean["logprob"],
            supervised_loss=supervised_loss * examples / max(1e-9, taught.total_weight),
        )

    def _alike(
        self,
        batch: DealtBatch,
        plan: Sequence[MicroBatch],
        supervised: DealtBatch,
    ) -> tuple[Sequence[MicroBatch], Sequence[MicroBatch]]:
        """Pack the supervised examples too, so that one schedule can run over both plans."""
        examples = self.plan(supervised) if supervised.counts.sequences else []
        if examples and self.layout.sizes.virtual_pipeline > 1:
            tokens = max(longest_tokens(plan), longest_tokens(examples))
            return self.plan(batch, tokens), self.plan(supervised, tokens)
        return plan, examples

    @contextmanager
    def weights_of(self, snapshot: list[torch.Tensor]) -> Iterator[None]:
        """Compute with `snapshot` (from `snapshot()`) instead of the current weights in the block.

        Pointers are exchanged, nothing is copied.
        """
        parameters = self._parameters()
        current = [p.data for p in parameters]
        try:
            for parameter, data in zip(parameters, snapshot):
                parameter.data = data
            yield
        finally:
            for parameter, data in zip(parameters, current):
                parameter.data = data

    def hf_tensors(
        self, bucket_bytes: int, include_tied_head: bool = False
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield full Hugging Face tensors of the current weights, on every rank, bucket by bucket.

        Collective: all ranks must exhaust the iterator.
        """
        return hf_tensors(self.chunks, self.architecture, self.weight_groups, bucket_bytes, include_tied_head)

    @property
    def weight_groups(self) -> WeightGroups:
        """This rank's place in the groups that hold one copy of the model."""
        return WeightGroups(
            tensor=tensor_group(),
            pipeline=pipeline_group(),
            tp_rank=self.layout.tensor_rank,
            tp_size=self.layout.sizes.tensor,
            pp_rank=self.layout.pipeline_rank,
            pp_size=self.layout.sizes.pipeline,
        )

    def load_hf(self, model_dir: str) -> None:
        """Fill this rank's shard from a Hugging Face directory."""
        load_hf_weights(
            self.chunks, model_dir, self.architecture, self.layout.tensor_rank, self.layout.sizes.tensor
        )
        self.frozen_outputs.forget()
        self.optimizer.reload_model_params()

    def snapshot(self) -> list[torch.Tensor]:
        """Copy this rank's weights, to serve as the reference policy."""
        return [p.detach().clone() for p in self._parameters()]

    def allocated(self, reference: Sequence[torch.Tensor]) -> dict[str, int]:
        """Count the bytes that this rank holds for training, by kind; `reference` is a `snapshot()`."""
        self.restore()
        return allocated_bytes(self._parameters(), self.optimizer, reference)

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for chunk in self.chunks for p in chunk.parameters()]

    def _forward_backward(
        self,
        plan: Sequence[MicroBatch],
        loss: Callable[[MicroBatch, int], losses.LossFunction],
        forward_only: bool = False,
    ) -> list[dict[str, torch.Tensor]]:
        """Run Megatron's schedule over this rank's micro-batches.

        Returns:
            On the last stage, the tensors that each loss collected, in order.
        """

        def forward_step(
            batches: Iterator[tuple[int, MicroBatch]], model: torch.nn.Module
        ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[Any, ...]]]:
            index, batch = next(batches)
            at_output = LossAtOutput(loss(batch, index), self.train.fuses_output_layer)
            watchdog.advance(f"micro-batch {index + 1} of {len(plan)}")
            output = model(
                batch.token_ids_T[None],
                batch.position_ids_T[None],
                None,
                packed_seq_params=batch.packed_seq_params,
                loss_mask=batch.loss_mask_T[None],
                output_processor=completion_loss,
                output_processor_context=at_output,
            )
            return output, at_output.result

        if not forward_only:
            self.restore()
            for chunk in self.wrapped:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
        interleaved = len(self.wrapped) > 1
        with watchdog.doing(f"micro-batch 1 of {len(plan)}"):
            return get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=[iter(list(enumerate(plan))) for _ in self.wrapped]
                if interleaved
                else iter(list(enumerate(plan))),
                model=self.wrapped if interleaved else self.wrapped[0],
                num_microbatches=len(plan),
                # Only the interleaved schedule reads it, and divides it by the context size; others exchange
                # shapes.
                seq_length=plan[0].token_ids_T.numel() * self.layout.sizes.context,
                micro_batch_size=1,
                forward_only=forward_only,
            )

    def _reduce(self, collected: list[dict[str, torch.Tensor]], key: str, width: int) -> torch.Tensor:
        """Sum a collected vector over micro-batches, data- and context-parallel ranks and stages.

        Only the last stage collects; the others contribute zeros.
        """
        rows = [entry[key].float() for entry in collected if key in entry] or [
            torch.zeros(width, device=self.device.torch_device)
        ]
        total = torch.stack(rows).sum(0)
        with watchdog.doing(f"reduction of {key}"):
            for group in (copies_group(), pipeline_group()):
                dist.all_reduce(total, group=group)
        return total

    def _optimizer_step(self, loss: float, learning_rate: float, tokens: int) -> StepStats:
        set_hyperparameters(self.optimizer, learning_rate, self.train.weight_decay)
        with watchdog.doing("optimizer step"):
            self.optimizer.prepare_grads()
            grad_norm = float(self.optimizer.get_grad_norm())
            applied = math.isfinite(grad_norm) and math.isfinite(loss)
            if applied:
                with counting_empty_groups(self.optimizer):
                    _, grad_norm, _ = self.optimizer.step()
        return StepStats(loss, float(grad_norm), applied, tokens, learning_rate)
