"""Describe Llama (SmolLM2 included): grouped-query attention, gated MLP, RMSNorm, no biases.

Other families extend its rules.
"""

from __future__ import annotations

from selfemo.models.family import Family, Rule
from selfemo.models.tensor_layouts import FusedGateUp, FusedQkv, Replicated, Split, VocabularyRows

MEGATRON_LAYER = "decoder.layers.{layer}."
HF_LAYER = "model.layers.{layer}."

RULES = (
    Rule(
        megatron=("embedding.word_embeddings.weight",),
        hf={"model.embed_tokens.weight": ("vocab_size", "hidden_size")},
        vllm="model.embed_tokens.weight",
        layout=VocabularyRows(),
    ),
    Rule(
        megatron=(
            MEGATRON_LAYER + "input_layernorm.weight",
            MEGATRON_LAYER + "self_attention.linear_qkv.layer_norm_weight",
        ),
        hf={HF_LAYER + "input_layernorm.weight": ("hidden_size",)},
        vllm=HF_LAYER + "input_layernorm.weight",
        layout=Replicated(),
    ),
    Rule(
        megatron=(MEGATRON_LAYER + "self_attention.linear_qkv.weight",),
        hf={
            HF_LAYER + "self_attn.q_proj.weight": ("query_size", "hidden_size"),
            HF_LAYER + "self_attn.k_proj.weight": ("kv_size", "hidden_size"),
            HF_LAYER + "self_attn.v_proj.weight": ("kv_size", "hidden_size"),
        },
        vllm=HF_LAYER + "self_attn.qkv_proj.weight",
        layout=FusedQkv(),
    ),
    Rule(
        megatron=(MEGATRON_LAYER + "self_attention.linear_proj.weight",),
        hf={HF_LAYER + "self_attn.o_proj.weight": ("hidden_size", "query_size")},
        vllm=HF_LAYER + "self_attn.o_proj.weight",
        layout=Split(dim=1),
    ),
    Rule(
        megatron=(
            MEGATRON_LAYER + "pre_mlp_layernorm.weight",
            MEGATRON_LAYER + "mlp.linear_fc1.layer_norm_weight",
        ),
        hf={HF_LAYER + "post_attention_layernorm.weight": ("hidden_size",)},
        vllm=HF_LAYER + "post_attention_layernorm.weight",
        layout=Replicated(),
    ),
    Rule(
        megatron=(MEGATRON_LAYER + "mlp.linear_fc1.weight",),
        hf={
            HF_LAYER + "mlp.gate_proj.weight": ("intermediate_size", "hidden_size"),
            HF_LAYER + "mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
        },
        vllm=HF_LAYER + "mlp.gate_up_proj.weight",
        layout=FusedGateUp(),
    ),
    Rule(
        megatron=(MEGATRON_LAYER + "mlp.linear_fc2.weight",),
        hf={HF_LAYER + "mlp.down_proj.weight": ("hidden_size", "intermediate_size")},
        vllm=HF_LAYER + "mlp.down_proj.weight",
        layout=Split(dim=1),
    ),
    Rule(
        megatron=("decoder.final_layernorm.weight",),
        hf={"model.norm.weight": ("hidden_size",)},
        vllm="model.norm.weight",
        layout=Replicated(),
    ),
    Rule(
        megatron=("output_layer.weight",),
        hf={"lm_head.weight": ("vocab_size", "hidden_size")},
        vllm="lm_head.weight",
        layout=VocabularyRows(),
    ),
)

FAMILY = Family(
    name="llama",
    hf_architecture="LlamaForCausalLM",
    rules=RULES,
    required={"attention_bias": False, "mlp_bias": False, "rope_interleaved": False},
)
