"""Count the parameters of a model by kind, and the elements of each kind that a rank allocates.

All layers are alike, so each kind is laid out once and multiplied: a plan for hundreds of ranks
takes milliseconds. Names and shapes come from the family's rules, the same that move real weights.
Kinds are in the order in which Megatron's modules register parameters, because the distributed
optimizer cuts its shards through them in that order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from selfemo.config.layout import Layout
from selfemo.models.architecture import Architecture
from selfemo.models.family import Rule, families
from selfemo.models.geometry import Placement
from selfemo.models.tensor_layouts import Heads, HfTensor, TensorLayout

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"
LAYER_ORDER = (
    "input_layernorm.weight",
    "self_attention.linear_proj.weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "self_attention.q_layernorm.weight",
    "self_attention.k_layernorm.weight",
    "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
)
"""Parameters of one layer as megatron-core 0.19.2's local layer spec registers them."""


@dataclass(frozen=True)
class Kind:
    """One kind of parameter, which exists once in the model or once per layer."""

    name: str
    """Megatron's name, without the layer's prefix."""
    tensors: tuple[HfTensor, ...]
    layout: TensorLayout
    heads: Heads
    per_layer: bool
    is_tied_copy: bool
    """True for the last stage's copy of a tied embedding: allocated if a pipeline separates the two
    ends, never sent to the engine."""

    def megatron(self, rank: int, size: int) -> Placement:
        """Place the shard of tensor-parallel rank `rank` of `size` in Megatron."""
        return self.layout.megatron(self.tensors, self.heads, rank, size)

    def vllm(self, rank: int, size: int) -> Placement:
        """Place the live parameter of tensor-parallel rank `rank` of `size` in vLLM."""
        return self.layout.vllm(self.tensors, self.heads, rank, size)


@cache
def kinds(architecture: Architecture) -> tuple[Kind, ...]:
    """List every kind in Megatron's order of registration: embedding, those of a layer, final norm,
    output layer."""
    bound = [_bind(rule, architecture) for rule in families()[architecture.family].rules]
    in_layer = sorted((kind for kind in bound if kind.per_layer), key=_place_in_layer)
    rest = [kind for kind in bound if not kind.per_layer and kind.name != EMBEDDING]
    return (*(kind for kind in bound if kind.name == EMBEDDING), *in_layer, *rest)


@dataclass(frozen=True)
class Allocation:
    """One parameter of one model chunk on a pipeline stage."""

    kind: Kind
    elements: int
    """Elements on each tensor-parallel rank, padding included; every rank has the same number."""
    own_bucket: bool
    """True for the two ends of a tied embedding, which Megatron reduces in buckets of their own."""
    is_trained: bool = True
    """False for frozen layers, the embedding beside them, and an output layer that is the same matrix."""


def stage_chunks(architecture: Architecture, layout: Layout, stage: int) -> list[list[Allocation]]:
    """List the parameters a pipeline stage allocates, per virtual chunk, in order of registration."""
    size, tied_apart = layout.tensor, architecture.tie_word_embeddings and layout.pipeline > 1
    is_thawed = layout.frozen_layers == 0
    by_kind = {kind: Allocation(kind, kind.megatron(0, size).elements, False) for kind in kinds(architecture)}
    in_layer = [by_kind[kind] for kind in by_kind if kind.per_layer]
    in_frozen = [replace(allocation, is_trained=False) for allocation in in_layer]
    chunks: list[list[Allocation]] = []
    for chunk, layers in enumerate(_chunk_layers(architecture, layout, stage)):
        frozen = min(len(layers), max(0, layout.frozen_layers - layers.start))
        held = in_frozen * frozen + in_layer * (len(layers) - frozen)
        if stage == 0 and chunk == 0:
            held = [
                Allocation(kind, by_kind[kind].elements, tied_apart, is_thawed)
                for kind in by_kind
                if kind.name == EMBEDDING
            ] + held
        if stage == layout.pipeline - 1 and chunk == layout.virtual_pipeline - 1:
            last = [kind for kind in by_kind if not kind.per_layer and kind.name != EMBEDDING]
            held += [
                Allocation(k, by_kind[k].elements, k.is_tied_copy, is_thawed or not k.is_tied_copy)
                for k in last
                if not k.is_tied_copy or tied_apart
            ]
        chunks.append(held)
    return chunks


def layers_on(architecture: Architecture, layout: Layout) -> int:
    """Number of layers on each pipeline stage."""
    return architecture.num_layers // layout.pipeline


def trained_layers_on(architecture: Architecture, layout: Layout, stage: int) -> int:
    """Layers of a pipeline stage that are not frozen; no stage has more than the last one."""
    chunks = _chunk_layers(architecture, layout, stage)
    return sum(max(0, layers.stop - max(layers.start, layout.frozen_layers)) for layers in chunks)


def trains_head(architecture: Architecture, layout: Layout) -> bool:
    """Return True if the output weight has a gradient: it has none if it is the frozen embedding."""
    return layout.frozen_layers == 0 or not architecture.tie_word_embeddings


def _chunk_layers(architecture: Architecture, layout: Layout, stage: int) -> list[range]:
    """List the layer numbers of each virtual chunk of a stage; chunks are dealt to the stages in turn."""
    count = architecture.num_layers // (layout.pipeline * layout.virtual_pipeline)
    firsts = ((chunk * layout.pipeline + stage) * count for chunk in range(layout.virtual_pipeline))
    return [range(first, first + count) for first in firsts]


def stages_of(kind: Kind, architecture: Architecture, layout: Layout) -> dict[int, int]:
    """Count the parameters of this kind on each stage: {stage: count}."""
    if kind.per_layer:
        return dict.fromkeys(range(layout.pipeline), layers_on(architecture, layout))
    return {0 if kind.name == EMBEDDING else layout.pipeline - 1: 1}


def sent_on(kind: Kind, architecture: Architecture, layout: Layout, only_trained: bool) -> dict[int, int]:
    """Count the parameters of this kind on each stage that a sync sends: all, or those that are trained."""
    if not only_trained or layout.frozen_layers == 0:
        return stages_of(kind, architecture, layout)
    if kind.per_layer:
        counts = {stage: trained_layers_on(architecture, layout, stage) for stage in range(layout.pipeline)}
        return {stage: count for stage, count in counts.items() if count}
    return {} if kind.name == EMBEDDING else stages_of(kind, architecture, layout)


def total_elements(architecture: Architecture) -> int:
    """Count the elements of the Hugging Face checkpoint."""
    sizes = (
        (kind, sum(tensor.elements for tensor in kind.tensors))
        for kind in kinds(architecture)
        if not kind.is_tied_copy
    )
    return sum(size * (architecture.num_layers if kind.per_layer else 1) for kind, size in sizes)


def layer_elements(architecture: Architecture) -> int:
    """Count the elements of one layer."""
    return sum(tensor.elements for kind in kinds(architecture) if kind.per_layer for tensor in kind.tensors)


def _bind(rule: Rule, architecture: Architecture) -> Kind:
    name = rule.megatron[0]
    per_layer = "{layer}" in name
    tensors = tuple(
        HfTensor(name, tuple(getattr(architecture, size) for size in shape))
        for name, shape in rule.hf.items()
    )
    tied_copy = architecture.tie_word_embeddings and name == OUTPUT_LAYER
    if tied_copy:
        source = next(r for r in families()[architecture.family].rules if r.megatron[0] == EMBEDDING)
        tensors = (HfTensor(next(iter(source.hf)), tensors[0].shape),)
    short = name.split("{layer}.", 1)[1] if per_layer else name
    return Kind(short, tensors, rule.layout, architecture.heads, per_layer, tied_copy)


def _place_in_layer(kind: Kind) -> int:
    return LAYER_ORDER.index(kind.name) if kind.name in LAYER_ORDER else len(LAYER_ORDER)
