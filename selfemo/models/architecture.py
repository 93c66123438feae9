"""Read the shape of a model from a Hugging Face config.json, or look it up by name.

Reads the fields of transformers 4 and 5 (`rope_theta` and `torch_dtype`, or `rope_parameters` and
`dtype`). Refuses by name any field that would change the mathematics and is not implemented (see
selfemo.models.config_fields). If such a field were ignored, the weights would silently run as another
model. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from selfemo.common.errors import UserError, nearest
from selfemo.common.json_file import read_json_object
from selfemo.common.printable import quote
from selfemo.models.config_fields import LENGTHS, refuse_rope_fields, refuse_unimplemented
from selfemo.models.family import Family, families
from selfemo.models.tensor_layouts import Heads

CONFIG_NAME = "config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
"""Files of a model directory: its fields, and its weights in one file or the list of those they are in."""
QUANTISED_NAME = "hf_quant_config.json"
"""A quantizer's file (ModelOpt), which vLLM obeys as it does config.json's quantization_config."""
MAX_LAYERS = 1_000
MAX_INTEGER = 2**31 - 1
MAX_NUMBER = 1e30
"""Bounds of the numbers in a config.json: tables of tensors are made from them before any weights
are seen.
"""
DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Dtypes that weights may be stored in, and their bytes per element."""


@dataclass(frozen=True)
class Architecture:
    """Every field of a decoder that decides its names, shapes and mathematics."""

    family: str
    """Name of the family, such as qwen3, qwen2 or llama."""
    vocab_size: int
    """Rows of the embedding as stored, before any padding."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    qk_norm: bool
    """RMSNorm on each query and key head."""
    qkv_bias: bool
    """Biases on the query, key and value projections."""
    max_position_embeddings: int
    """Longest sequence that the model knows, in tokens."""
    dtype: str
    """Dtype of the stored weights, as torch spells it without `torch.`."""

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key (or value) projection."""
        return self.num_kv_heads * self.head_dim

    def kv_bytes_per_token(self, dtype: str, tensor: int) -> float:
        """Return the bytes of one token's keys and values on each of `tensor` ranks.

        Ranks beyond the number of key-value heads share them.
        """
        return 2 * self.num_layers * self.kv_size * DTYPE_BYTES[dtype] / min(tensor, self.num_kv_heads)

    @property
    def heads(self) -> Heads:
        """The numbers that the layout of the attention projection depends on."""
        return Heads(self.num_heads, self.num_kv_heads, self.head_dim)


def read_architecture(hf_dir: str | Path) -> Architecture:
    """Read the architecture that a Hugging Face directory describes.

    Raises:
        UserError: no readable config.json, an unsupported architecture, or a setting that is not
            implemented; names file and field.
    """
    path = Path(hf_dir) / CONFIG_NAME
    try:
        config = read_json_object(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; expected a Hugging Face model directory with config.json and "
            "safetensors weights"
        ) from None
    if path.with_name(QUANTISED_NAME).exists():
        raise UserError(
            f"{path.with_name(QUANTISED_NAME)}: vLLM reads the weights beside it as quantised; dequantise "
            "the model first, or remove the file if the weights are plain"
        )
    return _from_config(config, _family_of(config, path), str(path))


def is_known_by_name(name: str) -> bool:
    """Return whether `architecture_by_name` knows this published model."""
    return name.lower() in _published()


def architecture_by_name(name: str) -> Architecture:
    """Return a published architecture known without a download, such as "qwen3-8b".

    Raises:
        UserError: the name is unknown; lists the known ones.
    """
    known = _published()
    if name.lower() not in known:
        raise UserError(
            f"model {name!r} is not known by name{nearest(name.lower(), known)}; known: "
            f"{', '.join(sorted(known))}"
        )
    family, config = known[name.lower()]
    return _from_config(config, family, name)


def _published() -> dict[str, tuple[Family, Mapping[str, object]]]:
    """Return family and config.json fields of every model known by name."""
    return {key: (family, config) for family in families().values() for key, config in family.named.items()}


def hf_config(architecture: Architecture) -> dict[str, object]:
    """Build a config.json from an architecture, for a model that never had one.

    transformers 4 and 5 both read it.
    """
    family = families()[architecture.family]
    return {
        "architectures": [family.hf_architecture],
        "model_type": family.name,
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "rope_theta": architecture.rope_theta,
        "rms_norm_eps": architecture.rms_norm_eps,
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "max_position_embeddings": architecture.max_position_embeddings,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "torch_dtype": architecture.dtype,
        **family.required,
    }


def _family_of(config: Mapping[str, object], path: Path) -> Family:
    """Return the family whose class config.json names."""
    named = config.get("architectures")
    by_class = {family.hf_architecture: family for family in families().values()}
    wanted = named[0] if isinstance(named, list) and named else config.get("model_type")
    for key, family in by_class.items():
        if wanted in (key, family.name):
            if config.get("model_type") != family.name:  # transformers obeys this one, vLLM the other
                raise UserError(
                    f"{path}: model_type is {quote(config.get('model_type'))}, expected {family.name!r} for "
                    f"{key}: correct the one that is wrong"
                )
            return family
    hint = nearest(wanted, by_class) if isinstance(wanted, str) else ""
    raise UserError(
        f"{path}: architecture {quote(wanted)} is not supported{hint}; supported: "
        f"{', '.join(sorted(by_class))}"
    )


def _from_config(config: Mapping[str, object], family: Family, where: str) -> Architecture:
    refuse_unimplemented(config, family, where)
    num_heads = _integer(config, "num_attention_heads", where)
    hidden_size = _integer(config, "hidden_size", where)
    absent_kv_heads = (family.num_kv_heads if "num_key_value_heads" not in config else 0) or num_heads
    num_kv_heads = _integer(config, "num_key_value_heads", where, default=absent_kv_heads)
    if num_heads % num_kv_heads:
        raise UserError(
            f"{where}: num_attention_heads={num_heads} is not a multiple of "
            f"num_key_value_heads={num_kv_heads}"
        )
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise UserError(
            f"{where}: dtype {quote(dtype)} is not supported; expected one of {', '.join(DTYPE_BYTES)}"
        )
    vocab_size, pad = _integer(config, "vocab_size", where), config.get("pad_token_id")
    if isinstance(pad, int) and pad >= vocab_size:
        raise UserError(
            f"{where}: pad_token_id={quote(pad)} has no row in the embedding (vocab_size={vocab_size}), and "
            "transformers does not build such a model: set it to null, or enlarge the embedding "
            "(resize_token_embeddings)"
        )
    return Architecture(
        family=family.name,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size", where),
        num_layers=_integer(config, "num_hidden_layers", where),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_integer(config, "head_dim", where, default=family.head_dim or hidden_size // num_heads),
        rope_theta=_rope_theta(config, family, where),
        rms_norm_eps=_number(config, "rms_norm_eps", where),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        max_position_embeddings=min(
            _integer(config, key, where)
            for key in ("max_position_embeddings", *LENGTHS)
            if key == "max_position_embeddings" or config.get(key) is not None
        ),
        dtype=str(dtype),
    )


def _rope_theta(config: Mapping[str, object], family: Family, where: str) -> float:
    """Return the rotary base, from either spelling; refuse any scaling of it."""
    found: dict[str, float] = {}
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise UserError(f"{where}: {key} is {quote(rope)}; expected an object or null")
        refuse_rope_fields(rope, key, where)
        if rope.get("rope_theta") is not None:
            found[f"{key}.rope_theta"] = _number(rope, "rope_theta", where)
    if "rope_theta" in config and (config["rope_theta"] is not None or not found):
        found["rope_theta"] = _number(config, "rope_theta", where)
    if len(set(found.values())) > 1:
        told = ", ".join(f"{key}={value:g}" for key, value in found.items())
        raise UserError(f"{where}: {told} differ; keep the one that the model was trained with")
    return next(iter(found.values()), family.rope_theta)


def _number(config: Mapping[str, object], key: str, where: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_NUMBER:
        raise UserError(f"{where}: {key} is {quote(value)}; expected a positive number")
    return float(value)


def _integer(config: Mapping[str, object], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    most = MAX_LAYERS if key == "num_hidden_layers" else MAX_INTEGER
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise UserError(f"{where}: {key} is {quote(value)}; expected a positive integer of at most {most}")
    return value
