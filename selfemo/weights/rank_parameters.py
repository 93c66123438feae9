"""Find the parameters that one rank holds in its live Megatron modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from selfemo.common.errors import UserError, nearest
from selfemo.models.architecture import Architecture
from selfemo.models.parameters import LAYER_PREFIX, Parameter, model_parameters


def local_parameters(
    chunks: Sequence[nn.Module], architecture: Architecture
) -> list[tuple[Parameter, nn.Parameter]]:
    """Return the parameters that this rank holds, in streaming order.

    Args:
        chunks: the rank's GPTModel, or its virtual-pipeline chunks; wrappers (DDP, Float16Module)
            are looked through.

    Raises:
        UserError: a parameter that the family does not know, or one that two chunks hold; names it.
    """
    known = {
        name: (order, parameter)
        for order, parameter in enumerate(model_parameters(architecture))
        for name in parameter.names
    }
    held: dict[int, tuple[Parameter, nn.Parameter]] = {}
    for chunk in map(_unwrap, chunks):
        for local_name, tensor in chunk.named_parameters():
            name = _global_name(chunk, local_name)
            if name not in known:
                hint = nearest(name, known)
                raise UserError(
                    f"Megatron parameter {name} has no rule in family {architecture.family}{hint}: the "
                    "model was built differently"
                )
            order, parameter = known[name]
            if order in held:
                raise UserError(f"Megatron parameter {name} is held twice on this rank: model chunks overlap")
            held[order] = (parameter, tensor)
    return [held[order] for order in sorted(held)]


def _unwrap(chunk: nn.Module) -> nn.Module:
    while not hasattr(chunk, "decoder"):
        chunk = chunk.module
    return chunk


def _global_name(chunk: nn.Module, local_name: str) -> str:
    """Replace the chunk's own layer number in a parameter's name by the global one."""
    if not local_name.startswith(LAYER_PREFIX):
        return local_name
    index, rest = local_name[len(LAYER_PREFIX) :].split(".", 1)
    layers = chunk.get_submodule("decoder.layers")
    return f"{LAYER_PREFIX}{layers[int(index)].layer_number - 1}.{rest}"
