"""Settles the environment variables that vLLM reads, which a user's shell, image or cluster may have set.

What an engine's settings decide is set or removed here. Another variable of vLLM's stays as it is, and is
named once in the log, since it may change how the engine computes.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from selfemo.common.errors import UserError

PREFIX = "VLLM_"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # the engine core runs in this process, beside the trainer's tensors
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # ranks share the cores as the launcher placed them
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "0",
}
"""What this project sets, whatever the user's environment says."""

REMOVED = (
    "VLLM_CPU_KVCACHE_SPACE",  # overrides rollout.kv_cache_bytes
    "VLLM_LOGGING_CONFIG_PATH",  # vLLM refuses it beside VLLM_CONFIGURE_LOGGING=0
)

CHANGED = (
    "LOCAL_WORLD_SIZE",  # becomes the engine's tensor-parallel size
    "TORCHINDUCTOR_COMPILE_THREADS",  # becomes 1: Megatron's compiled functions would be built one by one
)
"""Variables that vLLM sets for itself, and that this process's trainer reads too."""


@contextmanager
def environment_put_back(names: Iterable[str] = CHANGED) -> Iterator[None]:
    """Put variables back to what they were; if none are named, those that building an engine changes."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def settle_environment(wanted: Mapping[str, str]) -> None:
    """Set the wanted variables, and remove those that would override an engine's arguments.

    Call it before vLLM is imported.

    Raises:
        UserError: vLLM cannot read the value of another variable.
    """
    _set(wanted)
    _tell_others(tuple(wanted))


def check_readable(wanted: Mapping[str, str] = ENVIRONMENT) -> None:
    """Refuse variables of vLLM's that its engine could not read, before a run. Changes nothing.

    Raises:
        UserError: vLLM cannot read the value of a variable that `settle_environment` leaves as it is.
    """
    ours = {name: value for name, value in wanted.items() if name.startswith(PREFIX)}
    with environment_put_back((*ours, *REMOVED)):
        _set(ours)  # vLLM reads some of them while it is imported
        _others(ours)


def _set(wanted: Mapping[str, str]) -> None:
    for name in REMOVED:
        os.environ.pop(name, None)
    os.environ.update(wanted)


def _others(wanted: Iterable[str]) -> list[str]:
    """List the variables of vLLM's that are not ours; imports vLLM only if there are any."""
    others = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in wanted)
    if not others:
        return []
    try:
        from vllm import envs
    except ImportError:
        return others  # told where the engine starts
    for name in others:
        try:
            envs.environment_variables.get(name, str)()  # getattr is cached once an engine has started
        except Exception as error:  # noqa: BLE001 - each variable is parsed by an expression of its own
            reason = type(error).__name__  # its text may quote the value, and an API key is one
            raise UserError(
                f"{name}: vLLM cannot read this variable ({reason}): correct or unset it"
            ) from None
    return others


@functools.cache  # once a process: vLLM sets variables of its own later
def _tell_others(wanted: tuple[str, ...]) -> None:
    others = _others(wanted)
    if not others:
        return
    logging.getLogger(__name__).warning(
        "variables of vLLM's in the environment, which this project neither sets nor knows: %s",
        ", ".join(others),
    )
