"""List a model's parameters: every Megatron name with the Hugging Face tensors behind it.

A family's rules are bound to an architecture: `{layer}` becomes every layer number and shapes
become numbers. Layer numbers here are global; a pipeline stage or virtual chunk counts its own
layers from 0 and carries the global number in `layer.layer_number`.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfemo.models.architecture import Architecture
from selfemo.models.family import Rule, families
from selfemo.models.geometry import Placement
from selfemo.models.tensor_layouts import Heads, HfTensor, TensorLayout

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
LAYER_PREFIX = "decoder.layers."


@dataclass(frozen=True)
class Parameter:
    """One Megatron parameter of the whole model, before it is cut into shards."""

    names: tuple[str, ...]
    """Megatron names with the global layer number; the local layer spec's comes first."""
    vllm_name: str
    tensors: tuple[HfTensor, ...]
    """The Hugging Face tensors it is made of, in fused order."""
    layout: TensorLayout
    heads: Heads
    layer: int | None = None
    """Global layer number; None for parameters before and after the layers."""
    is_tied_copy: bool = False
    """True for the output layer of a tied model: the last stage's copy of the embedding, if the
    pipeline separates the two.
    """

    @property
    def name(self) -> str:
        """The name under the local layer spec, which plans and reports use."""
        return self.names[0]

    def is_trained(self, frozen_layers: int) -> bool:
        """Return whether training changes it if the embedding and the lowest layers are frozen (0: none)."""
        if frozen_layers == 0:
            return True
        return self.tensors[0].name != EMBEDDING if self.layer is None else self.layer >= frozen_layers

    def megatron(self, rank: int, size: int) -> Placement:
        """Return the shard of tensor-parallel rank `rank` of `size` in Megatron."""
        return self.layout.megatron(self.tensors, self.heads, rank, size)

    def vllm(self, rank: int, size: int) -> Placement:
        """Return the live parameter of tensor-parallel rank `rank` of `size` in vLLM."""
        return self.layout.vllm(self.tensors, self.heads, rank, size)


def model_parameters(architecture: Architecture) -> tuple[Parameter, ...]:
    """Return every parameter in streaming order: embedding, layers by number, final norm, output
    layer.
    """
    rules = families()[architecture.family].rules
    per_layer = [rule for rule in rules if "{layer}" in rule.megatron[0]]
    first = rules.index(per_layer[0])
    before = [rule for rule in rules[:first] if rule not in per_layer]
    after = [rule for rule in rules[first:] if rule not in per_layer]
    bound = [_bind(rule, architecture) for rule in before]
    bound += [
        _bind(rule, architecture, layer) for layer in range(architecture.num_layers) for rule in per_layer
    ]
    return tuple(bound + [_bind(rule, architecture) for rule in after])


def hf_tensor_list(architecture: Architecture) -> tuple[HfTensor, ...]:
    """Return every tensor of the Hugging Face checkpoint, once, in streaming order.

    Tied models have no lm_head.weight.
    """
    return tuple(
        tensor
        for parameter in model_parameters(architecture)
        if not parameter.is_tied_copy
        for tensor in parameter.tensors
    )


def _bind(rule: Rule, architecture: Architecture, layer: int | None = None) -> Parameter:
    def fill(name: str) -> str:
        return name if layer is None else name.format(layer=layer)

    tensors = tuple(
        HfTensor(fill(name), tuple(getattr(architecture, size) for size in shape))
        for name, shape in rule.hf.items()
    )
    tied_copy = architecture.tie_word_embeddings and tensors[0].name == LM_HEAD
    if tied_copy:
        tensors = (HfTensor(EMBEDDING, tensors[0].shape),)
    return Parameter(
        tuple(map(fill, rule.megatron)),
        fill(rule.vllm),
        tensors,
        rule.layout,
        architecture.heads,
        layer,
        tied_copy,
    )
