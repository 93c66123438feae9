"""Reading a Hugging Face model directory: safetensors in one file or in indexed shards, a rectangle at a time.

Everything is checked before the first byte of weights is read (shards present and whole, every expected tensor there with its
shape, nothing beyond), so that a bad download fails in a second and by name. Files are memory-mapped by safetensors; a mapping
is dropped after `REOPEN_BYTES` of reads, because touched pages count as resident memory until then.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from selfemo.errors import UserError, nearest
from selfemo.weights.architecture import Architecture
from selfemo.weights.geometry import Shape, region
from selfemo.weights.parameters import LM_HEAD, hf_tensor_list

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
REOPEN_BYTES = 256 << 20
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Stored dtypes that are read, as safetensors spells them."""
DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and every model recomputes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    path: Path
    shape: Shape
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class HfDirectory:
    """The weights of a Hugging Face directory.

    Raises:
        UserError: no weights, a shard that is missing, truncated or disagrees with the index, an unsupported dtype; names file and tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tensors: dict[str, StoredTensor] = {}
        for file, indexed in self._files().items():
            self._read_header(file, indexed)
        self._open_path: Path | None = None
        self._open_file: Any = None
        self._mapped_bytes = 0

    def check(self, architecture: Architecture) -> None:
        """Compare names and shapes with what the architecture needs; a tied model may carry lm_head.weight, which is not read.

        Raises:
            UserError: a missing or extra tensor, or a wrong shape; names the first, and says how many.
        """
        wanted = {tensor.name: tensor.shape for tensor in hf_tensor_list(architecture)}
        missing = [name for name in wanted if name not in self.tensors]
        if missing:
            raise UserError(
                f"{self.path}: tensor {missing[0]} is missing ({len(missing)} of {len(wanted)} are); "
                f"expected a complete {architecture.family} checkpoint"
            )
        ignored = {LM_HEAD} if architecture.tie_word_embeddings else set()
        extra = [name for name in self.tensors if name not in wanted and name not in ignored and not name.endswith(DERIVED_SUFFIXES)]
        if extra:
            raise UserError(
                f"{self.tensors[extra[0]].path}: tensor {extra[0]} is not part of a {architecture.family} model of "
                f"{architecture.num_layers} layers{nearest(extra[0], missing)} ({len(extra)} such): check config.json against the weights"
            )
        for name, shape in wanted.items():
            stored = self.tensors[name]
            if stored.shape != shape:
                raise UserError(f"{stored.path}: tensor {name} has shape {stored.shape}, expected {shape} from config.json")

    def read(self, name: str, start: Shape | None = None, shape: Shape | None = None) -> torch.Tensor:
        """A rectangle of a tensor (the whole by default), possibly a view of the mapped file: copy it before the next read.

        Raises:
            UserError: the file cannot be read any more; names file and tensor.
        """
        stored = self.tensors[name]
        start, shape = start or (0,) * len(stored.shape), shape or stored.shape
        try:
            return self._mapped(stored).get_slice(name)[region(start, shape)]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{stored.path}: tensor {name} cannot be read ({error}); download the file again") from None

    def close(self) -> None:
        """Drop the mapping."""
        self._open_path = self._open_file = None

    def _mapped(self, stored: StoredTensor) -> Any:
        if stored.path != self._open_path or self._mapped_bytes >= REOPEN_BYTES:
            self.close()
            self._open_file = safe_open(stored.path, framework="pt")
            self._open_path, self._mapped_bytes = stored.path, 0
        self._mapped_bytes += stored.bytes
        return self._open_file

    def _files(self) -> dict[Path, set[str] | None]:
        """Every weight file, with the names the index says it holds (None without an index)."""
        index_path, single = self.path / INDEX_NAME, self.path / SINGLE_NAME
        if not index_path.exists():
            if single.exists():
                return {single: None}
            raise UserError(f"{self.path}: no weights; expected {SINGLE_NAME} or {INDEX_NAME} (pickled .bin files are not read)")
        try:
            weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
            by_file: dict[str, set[str]] = {file: set() for file in weight_map.values()}
            for name, file in weight_map.items():
                by_file[file].add(name)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index_path}: not a safetensors index ({error!r}); download the file again") from None
        for file in by_file:
            if Path(file).name != file:
                raise UserError(f"{index_path}: names the file {file!r}; expected a file in the same directory")
        return {self.path / file: names for file, names in by_file.items()}

    def _read_header(self, file: Path, indexed: set[str] | None) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                names = set(opened.keys())
                slices = {name: opened.get_slice(name) for name in names}
                found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        except FileNotFoundError:
            raise UserError(f"{file}: no such file, though {INDEX_NAME} names it; download it again") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: truncated or not a safetensors file ({error}); download it again") from None
        for name in sorted((indexed or names) - names):
            raise UserError(f"{file}: tensor {name} is missing, though {INDEX_NAME} places it there; download the file again")
        for name in sorted(names):
            shape, dtype = found[name]
            if dtype not in DTYPES:
                raise UserError(f"{file}: tensor {name} is stored as {dtype}; expected one of {', '.join(DTYPES)}")
            if name in self.tensors:
                raise UserError(f"{file}: tensor {name} is stored in {self.tensors[name].path.name} as well; keep one of the two")
            self.tensors[name] = StoredTensor(file, shape, DTYPES[dtype])
