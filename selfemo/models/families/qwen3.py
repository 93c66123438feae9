"""Describe Qwen3 dense: Llama with an RMSNorm on every query and key head, and head_dim 128
whatever the hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

from selfemo.models.families.llama import HF_LAYER, MEGATRON_LAYER, RULES
from selfemo.models.family import Family, Rule
from selfemo.models.tensor_layouts import Replicated

HEAD_NORMS = tuple(
    Rule(
        megatron=(f"{MEGATRON_LAYER}self_attention.{letter}_layernorm.weight",),
        hf={f"{HF_LAYER}self_attn.{letter}_norm.weight": ("head_dim",)},
        vllm=f"{HF_LAYER}self_attn.{letter}_norm.weight",
        layout=Replicated(),
    )
    for letter in "qk"
)


def _published(layers: int, hidden: int, intermediate: int, heads: int, tied: bool) -> Mapping[str, object]:
    """Fill in a published model's config.json: the arguments are the fields in which the models
    differ, the rest they share.
    """
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
        "vocab_size": 151_936,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40_960,
        "torch_dtype": "bfloat16",
    }


FAMILY = Family(
    name="qwen3",
    hf_architecture="Qwen3ForCausalLM",
    rules=(*RULES, *HEAD_NORMS),
    qk_norm=True,
    required={"attention_bias": False, "use_sliding_window": False},
    harmless=frozenset({"sliding_window"}),  # the length of windows that are off
    num_kv_heads=32,
    head_dim=128,
    named={
        "qwen3-0.6b": _published(28, 1024, 3072, 16, tied=True),
        "qwen3-1.7b": _published(28, 2048, 6144, 16, tied=True),
        "qwen3-4b": _published(36, 2560, 9728, 32, tied=True),
        "qwen3-8b": _published(36, 4096, 12_288, 32, tied=False),
    },
)
