"""Sort the fields of a config.json into understood, harmless and refused.

transformers and vLLM obey fields that this project has no code for: another attention, a factor on the
logits, rotation of half of each head. Weights with such a field are another model, and nothing in their names
or shapes shows it. So every field has to be on a list here; one that is on none is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from selfemo.common.errors import UserError
from selfemo.common.printable import quote
from selfemo.models.family import Family

# fmt: off
UNDERSTOOD = frozenset(
    {
        "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size",
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
        "tie_word_embeddings", "max_position_embeddings", "dtype", "torch_dtype", "rope_theta",
        "rope_parameters", "rope_scaling", "layer_types", "quantization_config", "pad_token_id",
    }
)
# fmt: on
"""Fields that selfemo.models.architecture reads."""
LENGTHS = (
    *("max_sequence_length", "max_seq_length", "max_seq_len"),
    *("seq_length", "seq_len", "model_max_length"),
)
"""Fields that vLLM takes for the longest sequence too, beside max_position_embeddings; the least counts."""
ONE_VALUE: Mapping[str, object] = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "sliding_window": None,
    "use_sliding_window": False,
    "use_bidirectional_attention": False,
    "use_mrope": False,
    "is_causal": True,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bias": False,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "num_nextn_predict_layers": 0,
    "pruned_heads": {},
}
"""Fields with one value that leaves the model as it is implemented here; null stands for it too, but in
is_causal, where vLLM takes it for false.
"""
# fmt: off
HARMLESS = frozenset(
    {
        # where the file comes from
        "transformers_version", "_name_or_path", "_model_name_or_path", "name_or_path", "_commit_hash",
        "auto_map", "unsloth_version", "unsloth_fixed", "transformers.js_config", "is_llama_config",
        "tokenizer_class",
        # how it is run or trained, at the same result
        "use_cache", "initializer_range", "pretraining_tp", "gradient_checkpointing",
        "chunk_size_feed_forward", "attn_implementation", "_attn_implementation",
        "_attn_implementation_autoset", "_flash_attn_2_enabled",
        # ids, which the tokenizer's files decide here
        "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
        # layers from which windows would slide; use_sliding_window has to be false
        "max_window_layers",
        # what transformers returns, and heads for other tasks
        "output_hidden_states", "output_attentions", "return_dict", "torchscript", "use_bfloat16",
        "tf_legacy_loss", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
        "task_specific_params", "prefix",
        # sampling, which the run's settings decide
        "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams",
        "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
        "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
        "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
        "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
        "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    }
)
# fmt: on
"""Fields that change nothing in what a model computes from token ids."""
ROPE_FIELDS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
"""Fields of rope_parameters and rope_scaling that are understood."""


def refuse_unimplemented(config: Mapping[str, object], family: Family, where: str) -> None:
    """Refuse a field that asks for other mathematics, or may ask for it.

    Raises:
        UserError: names file and field.
    """
    one_value = {**ONE_VALUE, "qk_norm": family.qk_norm, "qkv_bias": family.qkv_bias, **family.required}
    for key, wanted in one_value.items():
        same = (wanted,) if key == "is_causal" else (wanted, None)
        if config.get(key, wanted) not in same and key not in family.harmless:
            raise UserError(
                f"{where}: {key}={quote(config[key])} is not implemented for {family.name}; expected "
                f"{wanted!r}"
            )
    if config.get("quantization_config"):
        raise UserError(
            f"{where}: quantization_config is present; expected unquantised weights, dequantise the "
            "model first"
        )
    layer_types = config.get("layer_types") or []
    for kind in layer_types if isinstance(layer_types, list) else [layer_types]:
        if kind != "full_attention":
            raise UserError(f"{where}: layer_types has {quote(kind)}; only full_attention is implemented")
    unknown = _unknown(config, {*UNDERSTOOD, *LENGTHS, *one_value, *HARMLESS, *family.harmless})
    if unknown:
        others = f" ({len(unknown)} such)" if len(unknown) > 1 else ""
        raise UserError(
            f"{where}: field {quote(unknown[0])} is not known for {family.name}{others}, and an engine may "
            "obey it; use another model, or remove the field if it changes nothing in what the model computes"
        )


def refuse_rope_fields(rope: Mapping[str, object], key: str, where: str) -> None:
    """Refuse scaling of the rotary embedding, rotation of a part of each head, and what is unknown.

    Raises:
        UserError: names file and field.
    """
    for kind in (rope.get("rope_type"), rope.get("type")):
        if kind not in ("default", None):
            raise UserError(
                f"{where}: {key} asks for rope type {quote(kind)}, which is not implemented; only "
                "'default' is"
            )
    if rope.get("partial_rotary_factor") not in (1.0, None):
        found = quote(rope["partial_rotary_factor"])
        raise UserError(f"{where}: {key}.partial_rotary_factor={found} is not implemented; only 1.0 is")
    for name in _unknown(rope, ROPE_FIELDS):
        raise UserError(f"{where}: {key}.{name}={quote(rope[name])} is not implemented; remove it")


def _unknown(fields: Mapping[str, object], known: Iterable[str]) -> list[str]:
    """List the fields on no list; null asks for nothing."""
    names = set(known)
    return [name for name, value in fields.items() if name not in names and value is not None]
