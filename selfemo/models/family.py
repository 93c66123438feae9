"""Describe a model family by a list of rules, one per kind of parameter.

A family is one file in `selfemo/models/families/` that defines `FAMILY`. `families` finds every
file in that folder, so a new family edits no other file. A rule ties together a parameter's name in
Megatron, the Hugging Face tensors it is made of with their shapes, its name in vLLM, and its
layout. Names hold `{layer}` in place of the global layer number; shapes name fields of
`Architecture`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from selfemo.common.modules import modules_of
from selfemo.models.tensor_layouts import TensorLayout


@dataclass(frozen=True)
class Rule:
    """One kind of parameter: its names in three programs, and its layout."""

    megatron: tuple[str, ...]
    """Its names in Megatron: the local layer spec's, then (if it differs) the one under Transformer
    Engine's fused norms.
    """
    hf: Mapping[str, tuple[str, ...]]
    """Hugging Face tensors in the order they are fused: name -> shape, as names of Architecture's
    sizes.
    """
    vllm: str
    """Its name in vLLM's live model."""
    layout: TensorLayout


@dataclass(frozen=True)
class Family:
    """A model family, as far as weights are concerned."""

    name: str
    """Hugging Face's model_type."""
    hf_architecture: str
    """The class that config.json names under `architectures`."""
    rules: tuple[Rule, ...]
    """Every parameter of the model, in the order they are streamed."""
    qk_norm: bool = False
    """RMSNorm on each query and key head."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections."""
    required: Mapping[str, object] = field(default_factory=dict)
    """Fields of config.json that must hold this value if they are present. With another value it is
    a model that this code does not implement.
    """
    harmless: frozenset[str] = frozenset()
    """Further fields of config.json that change nothing in what the model computes, beside those of
    selfemo.models.config_fields.
    """
    rope_theta: float = 10_000.0
    num_kv_heads: int = 0
    head_dim: int = 0
    """transformers' values for a config.json without these fields. 0 key-value heads are as many as
    query heads, and a head_dim of 0 is the hidden size over the heads.
    """
    named: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Published models known by name without a download: the fields of their config.json that
    differ from the family's.
    """


@cache
def families() -> Mapping[str, Family]:
    """Return every family in `selfemo/models/families/`, by name."""
    package = importlib.import_module("selfemo.models.families")  # whose modules import this one
    found = [module.FAMILY for module in modules_of(package)]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}
