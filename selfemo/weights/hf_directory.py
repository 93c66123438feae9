"""Read a Hugging Face model directory, one file or indexed shards of safetensors, a rectangle at a
time.

Everything is checked before the first byte of weights is read (shards present and whole, every
expected tensor there with its shape, no other tensor), so that a bad download fails in a second and
by name. safetensors validates the headers. The data is read into place with plain reads, because
pages of a memory-mapped file cost a fault each and count as resident memory.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from selfemo.common.errors import UserError, nearest
from selfemo.common.json_file import read_json_object
from selfemo.common.printable import quote
from selfemo.models.architecture import INDEX_NAME, SINGLE_NAME, Architecture
from selfemo.models.geometry import Shape, region
from selfemo.models.parameters import EMBEDDING, LM_HEAD, hf_tensor_list

ADAPTER_NAME = "adapter_config.json"
COMPARED_ROWS = 4096
MAX_HEADER_BYTES = 16 << 20
"""Largest header that is read. A header has some hundred bytes per tensor: the largest published
shards have a few hundred kilobytes.
"""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Stored dtypes that are accepted, by their safetensors names."""
DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and every model recomputes; they are skipped."""


@dataclass(frozen=True)
class StoredTensor:
    """Place, shape and dtype of a tensor in a file."""

    path: Path
    offset_bytes: int
    """First byte of its data in the file."""
    shape: Shape
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class HfDirectory:
    """The weights of a Hugging Face directory.

    Raises:
        UserError: no weights, a shard that is missing, truncated or disagrees with the index, an
            unsupported dtype; names file and tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tensors: dict[str, StoredTensor] = {}
        for file, indexed in self._files().items():
            self._read_header(file, indexed)
        self._open: dict[Path, BinaryIO] = {}

    def check(self, architecture: Architecture) -> None:
        """Compare names and shapes with the architecture's.

        A tied model may carry a copy of the embedding as lm_head.weight.

        Raises:
            UserError: a missing or extra tensor, or a wrong shape; names the first, and says how
                many. Or lm_head.weight is no copy: transformers would untie such a model.
        """
        wanted = {tensor.name: tensor.shape for tensor in hf_tensor_list(architecture)}
        missing = [name for name in wanted if name not in self.tensors]
        if missing:
            raise UserError(
                f"{self.path}: tensor {missing[0]} is missing ({len(missing)} of {len(wanted)} are); "
                f"expected a complete {architecture.family} checkpoint"
            )
        ignored = {LM_HEAD} if architecture.tie_word_embeddings else set()
        extra = [
            name
            for name in self.tensors
            if name not in wanted and name not in ignored and not name.endswith(DERIVED_SUFFIXES)
        ]
        if extra:
            raise UserError(
                f"{self.tensors[extra[0]].path}: tensor {extra[0]} is not part of a "
                f"{architecture.family} model of {architecture.num_layers} layers"
                f"{nearest(extra[0], missing)} ({len(extra)} such): "
                "check config.json against the weights"
            )
        for name, shape in wanted.items():
            stored = self.tensors[name]
            if stored.shape != shape:
                raise UserError(
                    f"{stored.path}: tensor {name} has shape {stored.shape}, expected {shape} from "
                    "config.json"
                )
        if architecture.tie_word_embeddings and LM_HEAD in self.tensors:
            self._check_copy(LM_HEAD, EMBEDDING)

    def read(self, name: str, start: Shape | None = None, shape: Shape | None = None) -> torch.Tensor:
        """Read a rectangle of a tensor (the whole by default), in the stored dtype."""
        stored = self.tensors[name]
        target = torch.empty(shape or stored.shape, dtype=stored.dtype)
        self.read_into(name, start or (0,) * target.ndim, target)
        return target

    def read_into(self, name: str, start: Shape, target: torch.Tensor) -> None:
        """Fill `target` with the rectangle of a tensor that begins at `start`, converted to
        target's dtype.

        Raises:
            UserError: the file cannot be read any more; names file and tensor.
        """
        stored = self.tensors[name]
        in_place = (
            target.shape[1:] == stored.shape[1:]
            and target.dtype == stored.dtype
            and target.is_contiguous()
            and target.is_cpu
        )
        rows = target if in_place else torch.empty((target.shape[0], *stored.shape[1:]), dtype=stored.dtype)
        row_bytes = stored.bytes // max(1, stored.shape[0])
        try:
            file = self._open.get(stored.path) or stored.path.open("rb", buffering=0)
            self._open[stored.path] = file
            file.seek(stored.offset_bytes + start[0] * row_bytes)
            _read_fully(file, memoryview(rows.detach().view(-1).view(torch.uint8).numpy()))
        except OSError as error:
            raise UserError(
                f"{stored.path}: tensor {name} cannot be read ({error}); download the file again"
            ) from None
        if not in_place:
            target.copy_(rows[region((0, *start[1:]), target.shape)])

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _check_copy(self, name: str, original: str) -> None:
        """Refuse a tensor that is not equal to `original`, read a few rows at a time."""
        copy, stored = self.tensors[name], self.tensors[original]
        for row in range(0, stored.shape[0], COMPARED_ROWS):
            start, shape = (row, 0), (min(COMPARED_ROWS, stored.shape[0] - row), *stored.shape[1:])
            if copy.shape == stored.shape and torch.equal(
                self.read(name, start, shape), self.read(original, start, shape).to(copy.dtype)
            ):
                continue
            raise UserError(
                f"{copy.path}: {name} is not {original} of {stored.path.name}, though config.json says "
                "tie_word_embeddings=true; set it to false to keep both, or remove the one tensor"
            )

    def _files(self) -> dict[Path, set[str] | None]:
        """Return every weight file, with the names the index lists for it (None without an index)."""
        index_path, single = self.path / INDEX_NAME, self.path / SINGLE_NAME
        if (self.path / ADAPTER_NAME).exists():
            raise UserError(
                f"{self.path}: holds {ADAPTER_NAME}; an adapter is not read: merge it into its model "
                "(PEFT's merge_and_unload), or remove it"
            )
        if not index_path.exists():
            if single.exists():
                return {single: None}
            raise UserError(
                f"{self.path}: no weights; expected {SINGLE_NAME} or {INDEX_NAME} (pickled .bin files "
                "are not read)"
            )
        weight_map = read_json_object(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(
                f"{index_path}: not a safetensors index (no object weight_map); download the file again"
            )
        by_file: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            if (
                not isinstance(file, str)
                or Path(file).name != file
                or file in ("", "..")
                or not file.isprintable()
            ):
                raise UserError(
                    f"{index_path}: names the file {quote(file)}; expected a file in the same directory"
                )
            by_file.setdefault(file, set()).add(name)
        if single.exists() and set(by_file) != {SINGLE_NAME}:
            raise UserError(
                f"{single}: lies beside {INDEX_NAME}, which names other files ({min(by_file)}); transformers "
                "reads the one, other programs the others: remove the older"
            )
        return {self.path / file: names for file, names in by_file.items()}

    def _read_header(self, file: Path, indexed: set[str] | None) -> None:
        try:
            with file.open("rb") as raw:
                header_bytes = int.from_bytes(raw.read(8), "little")
                if header_bytes > MAX_HEADER_BYTES:
                    raise UserError(
                        f"{file}: a header of {header_bytes} bytes, expected at most {MAX_HEADER_BYTES}; "
                        "download it again"
                    )
                with safe_open(
                    file, framework="pt"
                ) as opened:  # checks the header against the size of the file
                    names = set(opened.keys())
                header = json.loads(raw.read(header_bytes))
        except FileNotFoundError:
            raise UserError(
                f"{file}: no such file, though {INDEX_NAME} names it; download it again"
            ) from None
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: truncated or not a safetensors file ({error}); download it again"
            ) from None
        for name in sorted((indexed or names) - names):
            raise UserError(
                f"{file}: tensor {name} is missing, though {INDEX_NAME} places it there; download the "
                "file again"
            )
        for name in sorted(names):
            entry = header[name]
            if entry["dtype"] not in DTYPES:
                raise UserError(
                    f"{file}: tensor {name} is stored as {entry['dtype']}; expected one of "
                    f"{', '.join(DTYPES)}"
                )
            if name in self.tensors:
                raise UserError(
                    f"{file}: tensor {name} is stored in {self.tensors[name].path.name} as well; keep "
                    "one of the two"
                )
            offset_bytes = 8 + header_bytes + entry["data_offsets"][0]
            self.tensors[name] = StoredTensor(
                file, offset_bytes, tuple(entry["shape"]), DTYPES[entry["dtype"]]
            )


def _read_fully(file: BinaryIO, into: memoryview) -> None:
    while into:
        count = file.readinto(into)  # type: ignore[attr-defined]
        if not count:
            raise OSError("the file ended early")
        into = into[count:]
