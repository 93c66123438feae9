"""Run megatron-core 0.19.2 on CPU and gloo. This is the only module that changes megatron-core and
torch.cuda.

megatron-core has no CPU path: it asks torch.cuda for "the current device", keeps CUDA RNG states,
and writes the literal "cuda" (and "torch.cuda.FloatTensor") where it allocates. `install` answers
the queries with the CPU, points the RNG tracker at torch's CPU generator and rewrites those
literals in the code objects of ten modules, so that every line of megatron-core that runs is its
own. It refuses another version, or another count of rewritten functions: a missed literal would
fail much later and less clearly. On a machine with CUDA nothing here runs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import types
from typing import Any

import torch

from selfemo.common.errors import UserError

MEGATRON_VERSION = "0.19.2"
REWRITTEN_FUNCTIONS = 22

_LITERAL_MODULES = (  # megatron-private
    "pipeline_parallel.schedules",
    "optimizer.optimizer",
    "optimizer.distrib_optimizer",
    "optimizer.clip_grads",
    "optimizer.grad_scaler",
    "utils",
    "transformer.utils",
    "tensor_parallel.data",
    "dist_checkpointing.exchange_utils",
    "dist_checkpointing.strategies.state_dict_saver",
)
_LITERALS = {"cuda": "cpu"} | {
    f"torch.cuda.{kind}Tensor": f"torch.{kind}Tensor" for kind in ("Float", "Half", "BFloat16")
}
_installed = False


def install() -> None:
    """Make megatron-core run on CPU tensors, once per process.

    Raises:
        UserError: the installed megatron-core is not version 0.19.2, or the rewritten functions are
            not 22.
    """
    global _installed
    if _installed:
        return
    found = importlib.metadata.version("megatron-core")
    if found != MEGATRON_VERSION:
        raise UserError(
            f"megatron-core {found} is installed, the CPU backend is written for {MEGATRON_VERSION}: "
            f"pip install megatron-core=={MEGATRON_VERSION}"
        )
    _answer_device_queries()
    _use_cpu_generator()
    count = sum(
        _rewrite_literals(importlib.import_module(f"megatron.core.{name}")) for name in _LITERAL_MODULES
    )  # megatron-private
    if count != REWRITTEN_FUNCTIONS:
        raise UserError(
            f"the CPU backend rewrote {count} functions of megatron-core, expected {REWRITTEN_FUNCTIONS}: "
            f"reinstall megatron-core=={MEGATRON_VERSION}"
        )
    _installed = True


def _answer_device_queries() -> None:
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu
    torch.cuda.set_device = lambda device: None
    # DDP makes the current stream wait for CUDA graphs' events; on CPU there are none.
    torch.cuda.current_stream = lambda device=None: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.manual_seed = torch.default_generator.manual_seed
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self


def _use_cpu_generator() -> None:
    tracker: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    # megatron-private
    tracker._get_cuda_rng_state = lambda device="cpu", clone=False, graph_safe=False: torch.get_rng_state()
    # megatron-private
    tracker._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


def _rewrite_literals(owner: Any, module_name: str = "") -> int:
    """Rewrite the literals in every function and method that `owner` (a module or class) defines.

    Returns:
        The number of functions that changed.
    """
    module_name = module_name or owner.__name__
    changed = 0
    for member in list(vars(owner).values()):
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if callable(member):
            member = inspect.unwrap(member)
        if getattr(member, "__module__", None) != module_name:
            continue
        if inspect.isclass(member) and member is not owner:
            changed += _rewrite_literals(member, module_name)
        elif isinstance(member, types.FunctionType):
            code = _translate(member.__code__)
            changed += code != member.__code__
            member.__code__ = code
    return changed


def _translate(constant: Any) -> Any:
    if isinstance(constant, str):
        return _LITERALS.get(constant, constant)
    if isinstance(constant, (tuple, frozenset)):
        return type(constant)(_translate(item) for item in constant)
    if isinstance(constant, types.CodeType):
        return constant.replace(co_consts=tuple(_translate(item) for item in constant.co_consts))
    return constant
