"""Keeps the tensors of a study's models once each: models that share frozen layers share their files.

A model directory becomes one file per tensor and an index, which every reader of Hugging Face directories
knows. The files are hard links into a store that names them by content, so that a model of which a third is
trained takes a third of the room.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from selfemo.models.architecture import INDEX_NAME, SINGLE_NAME


def keep_once(model: Path, store: Path) -> None:
    """Rewrite a model directory of one safetensors file. Cut short, it leaves a whole model, old or new.

    Args:
        store: directory of the tensors on the same file system; created if it does not exist.
    """
    single = model / SINGLE_NAME
    if not single.is_file():
        return
    from safetensors.torch import load_file, save  # imports torch

    store.mkdir(parents=True, exist_ok=True)
    weight_map, size = {}, 0
    for name, tensor in load_file(single).items():
        content = save({name: tensor}, {"format": "pt"})
        kept = store / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        if not kept.exists():
            written = model / "tensor.tmp"  # not in the store, where runs that end together would share it
            written.write_bytes(content)
            os.replace(written, kept)
        linked = model / f"{name}.safetensors"
        linked.unlink(missing_ok=True)
        os.link(kept, linked)
        weight_map[name], size = linked.name, size + tensor.numel() * tensor.element_size()
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    written = model / f"{INDEX_NAME}.tmp"
    written.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    os.replace(written, model / INDEX_NAME)
    single.unlink()
