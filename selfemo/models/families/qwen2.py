"""Describe Qwen2 and Qwen2.5 dense: Llama with biases on the query, key and value projections."""

from __future__ import annotations

from selfemo.models.families.llama import HF_LAYER, MEGATRON_LAYER, RULES
from selfemo.models.family import Family, Rule
from selfemo.models.tensor_layouts import FusedQkv

QKV_BIAS = Rule(
    megatron=(MEGATRON_LAYER + "self_attention.linear_qkv.bias",),
    hf={
        HF_LAYER + "self_attn.q_proj.bias": ("query_size",),
        HF_LAYER + "self_attn.k_proj.bias": ("kv_size",),
        HF_LAYER + "self_attn.v_proj.bias": ("kv_size",),
    },
    vllm=HF_LAYER + "self_attn.qkv_proj.bias",
    layout=FusedQkv(),
)

FAMILY = Family(
    name="qwen2",
    hf_architecture="Qwen2ForCausalLM",
    rules=(*RULES, QKV_BIAS),
    qkv_bias=True,
    required={"use_sliding_window": False},
    harmless=frozenset({"sliding_window"}),  # the length of windows that are off
    num_kv_heads=32,
)
