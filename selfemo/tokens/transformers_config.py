"""Compare a config.json as transformers reads it with the architecture that was read here.

The engine and the greedy probe build what transformers makes of the file. It checks the types of fields that
this project does not read, and of two fields that say one thing it takes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfemo.common.errors import UserError
from selfemo.common.printable import quote
from selfemo.models.architecture import CONFIG_NAME, Architecture
from selfemo.tokens.template import told_as

COMPARED: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
}
"""Attributes of transformers' configuration, and the fields of Architecture that they must equal."""


def check_transformers_config(directory: Path, architecture: Architecture) -> None:
    """Refuse a config.json that transformers cannot read, or reads as another model.

    Raises:
        UserError: names the file and the field.
    """
    from transformers import AutoConfig  # slow to import

    path = directory / CONFIG_NAME
    with told_as(path, "transformers, which the engine reads it with, refuses it", "correct that field"):
        read: Any = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    found = {name: getattr(read, name, None) for name in COMPARED}
    wanted = {name: getattr(architecture, field) for name, field in COMPARED.items()}
    rope: Mapping[str, object] = getattr(read, "rope_parameters", None) or {}
    found |= {"rope_theta": rope.get("rope_theta"), "rope_type": rope.get("rope_type")}
    wanted |= {"rope_theta": architecture.rope_theta, "rope_type": "default"}
    for name, value in found.items():
        if value is not None and value != wanted[name]:
            raise UserError(
                f"{path}: {name} is {quote(wanted[name])} here and {quote(value)} to transformers, since two "
                "of its fields say different things: remove the one that the model was not trained with"
            )
