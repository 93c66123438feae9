"""Build megatron-core GPT models from an Architecture: the config, and this rank's chunks.

Callers pass GPTModel.forward an `output_processor` from selfemo.megatron.output_layer, so that
logits are computed for completion tokens alone: with a vocabulary of 151,936 entries this saves
most of the logits' memory and time.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig

from selfemo.config.layout import Layout
from selfemo.megatron.device import Device, transformer_options
from selfemo.megatron.frozen import FrozenOutputs, freeze
from selfemo.megatron.layer_spec import block_spec
from selfemo.megatron.parallel import RankLayout
from selfemo.models.architecture import Architecture
from selfemo.models.tensor_layouts import padded_vocab_size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CompletionGPTModel(GPTModel):
    """GPTModel that rotates each token by its position id if segments share a prompt
    (selfemo.megatron.attention).

    Its output layer takes rows of whole sequences, which selfemo.megatron.output_layer selects.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.post_process and self.config.sequence_parallel:
            # The output processor gathers and selects rows first, so the output layer sees whole sequences.
            self.output_layer.sequence_parallel = False  # megatron-private
            self.output_layer.allreduce_dgrad = True  # megatron-private

    # megatron-private: positions of tokens enter here and nowhere else.
    def _preprocess(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        decoder_input, rotary, *rest = super()._preprocess(input_ids, position_ids, *args, **kwargs)
        packed = kwargs.get("packed_seq_params")
        if rotary is not None and packed is not None and packed.cu_seqlens_q is None:
            # [T, 1, D]: each token by its position, whichever segment it is in
            rotary = rotary[position_ids[0]].squeeze(1)
        return decoder_input, rotary, *rest


def transformer_config(
    architecture: Architecture,
    sizes: Layout,
    dtype: torch.dtype,
    device: Device,
    share_prompts: bool = False,
    attention_backend: str = "auto",
) -> TransformerConfig:
    """Return megatron-core's configuration of a dense decoder in this layout.

    Args:
        attention_backend: name of a member of megatron-core's AttnBackend, which Transformer Engine's
            attention obeys; ours and the local one do not.
    """
    recompute = (
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        if sizes.recompute
        else {}
    )
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.intermediate_size,
        num_attention_heads=architecture.num_heads,
        num_query_groups=architecture.num_kv_heads,
        kv_channels=architecture.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        virtual_pipeline_model_parallel_size=sizes.virtual_pipeline if sizes.virtual_pipeline > 1 else None,
        context_parallel_size=sizes.context,
        attention_backend=AttnBackend[attention_backend],
        sequence_parallel=sizes.sequence_parallel,
        # The interleaved schedule exchanges tensors of one fixed shape.
        variable_seq_lengths=sizes.pipeline > 1 and sizes.virtual_pipeline == 1,
        moe_token_dispatcher_type="alltoall",  # variable_seq_lengths requires it even in a dense model
        calculate_per_token_loss=True,  # gradients are plain sums: the losses carry their own weights
        **recompute,
        **transformer_options(device, share_prompts),
    )


def build_chunks(
    architecture: Architecture,
    config: TransformerConfig,
    layout: RankLayout,
    max_length: int,
    device: Device,
    share_prompts: bool = False,
    frozen_layers: int = 0,
    frozen_outputs: FrozenOutputs | None = None,
) -> list[CompletionGPTModel]:
    """Build this rank's model chunks (one, or one per virtual stage) on the device, with
    uninitialised weights.

    Args:
        frozen_layers: number of the model's lowest layers that are not trained, with the embedding
            (selfemo.megatron.frozen).
        frozen_outputs: where their output is kept; None keeps none.
    """
    chunks = []
    for stage in range(layout.sizes.virtual_pipeline):
        vp_stage = stage if layout.sizes.virtual_pipeline > 1 else None
        chunk = CompletionGPTModel(
            config,
            block_spec(config, device, vp_stage, share_prompts),
            vocab_size=padded_vocab_size(architecture.vocab_size, layout.sizes.tensor),
            max_sequence_length=max_length,
            position_embedding_type="rope",
            rotary_base=architecture.rope_theta,
            share_embeddings_and_output_weights=architecture.tie_word_embeddings,
            pre_process=layout.is_first_stage and stage == 0,
            post_process=layout.is_last_stage and stage == layout.sizes.virtual_pipeline - 1,
            vp_stage=vp_stage,
        )
        chunks.append(chunk.to(device.torch_device))
        freeze(chunks[-1], frozen_layers, frozen_outputs or FrozenOutputs(0))
    return chunks
