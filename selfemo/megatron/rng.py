"""Save and restore every random generator of this process: Python's, numpy's, torch's, CUDA's and
those of Megatron's tracker.

No result of a run depends on them today (draws have seeds of their own), but a model with dropout
would.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from selfemo.common.errors import UserError

TRACKER_PREFIX = "megatron."
WORDS = 624
"""Words of a Mersenne twister. numpy would read beyond them from a greater position."""


def collect_rng(device: torch.device) -> dict[str, torch.Tensor]:
    """Copy the current state of this rank's generators; it takes some kilobytes."""
    _, words, position, has_gauss, cached = np.random.get_state()
    version, python_words, python_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy.words": torch.from_numpy(np.asarray(words).astype(np.int64)),
        "numpy.rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "python.words": torch.tensor([version, *python_words], dtype=torch.int64),
        "python.gauss": torch.tensor([] if python_gauss is None else [python_gauss], dtype=torch.float64),
        **{f"{TRACKER_PREFIX}{name}": state for name, state in get_cuda_rng_tracker().get_states().items()},
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: state.cpu().clone() for name, state in states.items()}


def save_rng(path: Path, states: Mapping[str, torch.Tensor]) -> None:
    """Write the states that `collect_rng` returned to a safetensors file."""
    save_file(dict(states), path)


def restore_rng(path: Path, device: torch.device) -> None:
    """Restore the states that `save_rng` wrote; a GPU keeps its own if a CPU wrote them.

    Raises:
        UserError: the file holds no such states.
    """
    try:
        # not load_file: the tracker would keep its view of the file, which may be cut or removed
        _restore(load(path.read_bytes()), device)
    # what safetensors, torch, numpy and Python raise for states that are none
    except (SafetensorError, LookupError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"{path}: not the states of a rank's generators ({str(error)[:100]}): restore the checkpoint, or "
            "remove it to go on from an older one"
        ) from error


def _restore(states: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    position, has_gauss, cached = states["numpy.rest"].tolist()
    if not 0 <= position <= WORDS or len(states["numpy.words"]) != WORDS:
        raise ValueError(f"position {position} of {len(states['numpy.words'])} words")
    np.random.set_state(
        ("MT19937", states["numpy.words"].numpy().astype(np.uint32), int(position), int(has_gauss), cached)
    )
    version, *words = states["python.words"].tolist()
    gauss = states["python.gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    tracked = {
        name.removeprefix(TRACKER_PREFIX): state
        for name, state in states.items()
        if name.startswith(TRACKER_PREFIX)
    }
    get_cuda_rng_tracker().set_states(tracked)
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
