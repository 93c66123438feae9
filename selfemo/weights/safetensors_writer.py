"""Write safetensors files whose tensors arrive one at a time, in any order, without holding a file
in memory.

The format is a length, a JSON header and raw little-endian data. The header needs only names,
dtypes and shapes, which are known beforehand, so every tensor can be written to its final place
when it arrives. (safetensors' own writer wants a file's tensors all at once.)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from selfemo.models.architecture import INDEX_NAME, SINGLE_NAME
from selfemo.models.tensor_layouts import HfTensor
from selfemo.weights.hf_directory import DTYPES

DEFAULT_SHARD_BYTES = 4 << 30
"""Largest shard; a single tensor above it gets a file of its own."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class SafetensorsWriter:
    """Writes the shards of a Hugging Face checkpoint: headers at once, tensors as they arrive.

    Args:
        directory: the folder of the files; it must exist.
        tensors: every tensor that will be written, in file order.
        dtypes: dtype of each, in the same order.
        max_shard_bytes: largest file; a single larger tensor gets a file of its own.
    """

    def __init__(
        self,
        directory: Path,
        tensors: Sequence[HfTensor],
        dtypes: Sequence[torch.dtype],
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ) -> None:
        self._place: dict[str, tuple[Path, int, HfTensor, torch.dtype]] = {}
        """Of each tensor still to come: file, offset in it, tensor, dtype."""
        shards = _split(list(zip(tensors, dtypes)), max_shard_bytes)
        names = (
            [SINGLE_NAME]
            if len(shards) == 1
            else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        )
        for name, shard in zip(names, shards):
            self._begin(directory / name, shard)
        if len(shards) > 1:
            self._write_index(directory / INDEX_NAME, names, shards)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, converted to its declared dtype.

        Raises:
            ValueError: the tensor was not declared, has another shape, or was written before.
        """
        if name not in self._place:
            raise ValueError(f"tensor {name} was not declared, or was written before")
        path, offset, declared, dtype = self._place.pop(name)
        if tuple(tensor.shape) != declared.shape:
            raise ValueError(f"tensor {name} has shape {tuple(tensor.shape)}, declared {declared.shape}")
        data = tensor.detach().to("cpu", dtype).contiguous()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(memoryview(data.reshape(-1).view(torch.uint8).numpy()))

    def finish(self) -> None:
        """Check that every declared tensor was written.

        Raises:
            ValueError: names the first that was not.
        """
        if self._place:
            raise ValueError(f"tensor {next(iter(self._place))} was never written ({len(self._place)} such)")

    def _begin(self, path: Path, shard: list[tuple[HfTensor, torch.dtype]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offsets: list[int] = [0]
        for tensor, dtype in shard:
            offsets.append(offsets[-1] + tensor.elements * dtype.itemsize)
            header[tensor.name] = {
                "dtype": _CODES[dtype],
                "shape": list(tensor.shape),
                "data_offsets": offsets[-2:],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        for (tensor, dtype), offset in zip(shard, offsets):
            self._place[tensor.name] = (path, 8 + len(text) + offset, tensor, dtype)

    @staticmethod
    def _write_index(path: Path, names: list[str], shards: list[list[tuple[HfTensor, torch.dtype]]]) -> None:
        total = sum(tensor.elements * dtype.itemsize for shard in shards for tensor, dtype in shard)
        weight_map = {tensor.name: name for name, shard in zip(names, shards) for tensor, _ in shard}
        path.write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n",
            encoding="utf-8",
        )


def _split(
    tensors: list[tuple[HfTensor, torch.dtype]], max_shard_bytes: int
) -> list[list[tuple[HfTensor, torch.dtype]]]:
    shards: list[list[tuple[HfTensor, torch.dtype]]] = [[]]
    filled_bytes = 0
    for tensor, dtype in tensors:
        size = tensor.elements * dtype.itemsize
        if shards[-1] and filled_bytes + size > max_shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append((tensor, dtype))
        filled_bytes += size
    return shards
