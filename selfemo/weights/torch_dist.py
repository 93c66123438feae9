"""Write and read megatron-core's distributed checkpoints (torch_dist) by pieces, without a model or
megatron-core.

megatron-core saves through torch.distributed.checkpoint: data files, and a metadata file (a pickle by torch's
design, read by selfemo.weights.metadata_pickle) that maps rectangles of global tensors to places in them.
Layers are stacked (`decoder.layers.mlp.linear_fc2.weight` is [layers, hidden, intermediate]), norms carry
Transformer Engine's names, and tensor-parallel shards tile the tensor of one rank, so that the placement of a
model on one tensor-parallel rank describes the global tensor. A checkpoint written here loads through
`dist_checkpointing.load` in any layout.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from selfemo.common.errors import UserError
from selfemo.common.files import os_error_behind
from selfemo.common.printable import quote
from selfemo.models.geometry import Shape
from selfemo.models.parameters import LAYER_PREFIX, Parameter
from selfemo.models.tensor_layouts import VocabularyRows
from selfemo.weights.metadata_pickle import read_metadata

COMMON_NAME = "common.pt"  # megatron-private
"""File of the plain values before megatron-core 0.19; every version reads it, so it is written here."""
COMMON_KEY = "common_state/shard_0_1"  # megatron-private
"""Key under which megatron-core stores the plain values since 0.19."""
LOAD_ERRORS = (
    *(
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ),
    *(struct.error, ArithmeticError, AssertionError, MemoryError),
)
"""Raised by torch.load(weights_only=True) for a damaged file: its Python unpickler trusts lengths."""
FORMAT_NAME = "metadata.json"
# megatron-private
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""Its content in megatron-core 0.16; 0.19 omits the two `common` fields and ignores them when reading."""
STATEFUL_MODULES = (  # megatron-private
    "self_attention.linear_qkv",
    "self_attention.core_attention",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
"""Modules of a layer to which some layer spec gives an `_extra_state`, for FP8; it is empty here."""
STATEFUL_NORM = "decoder.final_layernorm._extra_state/shard_0_1"  # megatron-private
"""Key of the last norm's, which is no layer's."""
NOT_OF_THE_MODEL = re.compile(r"^(chained_\d+\.)?optimizer\.|\._extra_state(/|$)")  # megatron-private
"""Keys of optimizers (`optimizer.state.exp_avg.NAME`, numbered if several are chained) and FP8 state."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a global tensor: the amount held in memory at a time."""

    parameter: Parameter
    dtype: torch.dtype
    first_row: int
    stop_row: int


def pieces(parameter: Parameter, dtype: torch.dtype, limit_bytes: int) -> list[Piece]:
    """Cut a parameter into runs of rows of at most `limit_bytes` (but at least one row)."""
    shape = parameter.megatron(0, 1).shape
    row_bytes = parameter.megatron(0, 1).elements // shape[0] * dtype.itemsize
    step = max(1, limit_bytes // row_bytes)
    return [Piece(parameter, dtype, row, min(row + step, shape[0])) for row in range(0, shape[0], step)]


def write_checkpoint(
    directory: Path,
    content: Sequence[Piece],
    num_layers: int,
    common: Mapping[str, object],
    load: Callable[[Piece], torch.Tensor],
) -> None:
    """Write a checkpoint, asking for its pieces one at a time, in order.

    Args:
        common: plain values kept beside the tensors.
        load: returns a piece's rows; called once per piece.
    """
    planner = _PiecePlanner(content, num_layers, load)
    # A Path would be pickled, and one of Python 3.13 loads in no other version.
    writer = FileSystemWriter(str(directory), sync_files=False)
    try:
        # torch warns that no process group takes part; none is meant to.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
    except dcp.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        # torch.save hides a failed write behind a RuntimeError about positions.
        raise (os_error_behind(cause) or cause) from None
    torch.save(dict(common), directory / COMMON_NAME)
    (directory / FORMAT_NAME).write_text(json.dumps(FORMAT), encoding="utf-8")


class CheckpointReader:
    """Reads rectangles of the global tensors of a distributed checkpoint.

    Raises:
        UserError: it is no such checkpoint, or its metadata holds more than tensor records; names the file.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not (self.directory / FORMAT_NAME).exists():
            raise UserError(f"{self.directory}: no {FORMAT_NAME}; expected a Megatron distributed checkpoint")
        self._reader = _SafeReader(self.directory)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._tensors = {
            k: v
            for k, v in self._metadata.state_dict_metadata.items()
            if isinstance(v, TensorStorageMetadata)
        }

    def byte_blobs(self) -> Iterator[bytes]:
        """Yield the stored values that are no tensors, as bytes; in practice modules' `_extra_state`.

        Raises:
            UserError: a data file lies outside the checkpoint; names the directory.
            OSError: a data file cannot be read.
        """
        for index, place in self._metadata.storage_data.items():
            if not isinstance(self._metadata.state_dict_metadata.get(index.fqn), TensorStorageMetadata):
                yield self._blob(index.fqn, place)

    def common(self) -> bytes | None:
        """Return the plain values, which megatron-core keeps since 0.19 as torch.save of a list, or None.

        Raises:
            UserError, OSError: as `byte_blobs`.
        """
        for index, place in self._metadata.storage_data.items():
            if index.fqn == COMMON_KEY:
                return self._blob(index.fqn, place)
        return None

    def _blob(self, name: str, place: Any) -> bytes:
        path = self.directory / place.relative_path
        if path.parent != self.directory:
            raise UserError(
                f"{self.directory}: {name} points outside the checkpoint; it is damaged, or was made to harm"
            )
        with path.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.length)

    def stored(self, parameter: Parameter) -> tuple[str, tuple[int, ...]]:
        """Return a parameter's key and leading indices there: its layer if layers are stacked, else none.

        Raises:
            UserError: no such key; names the parameter.
        """
        for name in parameter.names:
            if name in self._tensors:
                return name, ()
            if parameter.layer is not None and stacked_key(name) in self._tensors:
                return stacked_key(name), (parameter.layer,)
        raise UserError(
            f"{self.directory}: tensor {parameter.name} is missing from the checkpoint; expected a model "
            "of this architecture"
        )

    def check(self, parameter: Parameter, num_layers: int) -> None:
        """Compare a parameter's stored shape with the architecture's; vocabularies may have padding rows.

        Raises:
            UserError: it is missing or has another shape; names it.
        """
        key, lead = self.stored(parameter)
        size, wanted = tuple(self._tensors[key].size), parameter.megatron(0, 1).shape
        layers, found = size[: len(lead)], size[len(lead) :]
        if isinstance(parameter.layout, VocabularyRows):
            rows_fit = found[0] >= parameter.tensors[0].shape[0]
        else:
            rows_fit = found[0] == wanted[0]
        if layers not in ((), (num_layers,)) or found[1:] != wanted[1:] or not rows_fit:
            expected = (*((num_layers,) if lead else ()), *wanted)
            raise UserError(
                f"{self.directory}: tensor {key} has shape {size}, expected {expected}; is this "
                "checkpoint of another model?"
            )

    def check_no_more(self, parameters: Sequence[Parameter]) -> None:
        """Refuse weights beyond these parameters; optimizer state and `_extra_state` do not count.

        Raises:
            UserError: there are some, which an export would silently drop; names the first.
        """
        claimed = {self.stored(parameter)[0] for parameter in parameters}
        extra = sorted(
            key for key in self._tensors if key not in claimed and not NOT_OF_THE_MODEL.search(key)
        )
        if extra:
            more = f" (and {len(extra) - 3} more)" if len(extra) > 3 else ""
            raise UserError(
                f"{self.directory}: {', '.join(map(quote, extra[:3]))}{more}: no parameter of the model "
                "that config.json describes; is this checkpoint of another model?"
            )

    def dtype(self, parameter: Parameter) -> torch.dtype:
        """Return the stored dtype of a parameter."""
        dtype: torch.dtype = self._tensors[self.stored(parameter)[0]].properties.dtype
        return dtype

    def read_into(self, parameter: Parameter, start: Shape, target: torch.Tensor) -> None:
        """Fill `target` with the rectangle of a parameter that begins at `start`.

        Raises:
            UserError: a data file is missing, truncated, or lacks the rectangle; names directory and tensor.
        """
        key, lead = self.stored(parameter)
        wide = target[None] if lead else target
        chunk = ChunkStorageMetadata(torch.Size((*lead, *start)), wide.size())
        items = create_read_items_for_chunk_list(key, self._tensors[key], [chunk])
        try:
            self._reader.read_data(LoadPlan(items), _IntoTensor(wide)).wait()
        except LOAD_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.directory}: tensor {key} cannot be read ({reason}); the checkpoint is incomplete"
            ) from None
        if sum(item.lengths.numel() for item in items) != target.numel():
            raise UserError(
                f"{self.directory}: tensor {key} is only partly stored; the checkpoint is incomplete"
            )


def read_common(directory: Path) -> dict[str, Any]:
    """Read the plain values beside a checkpoint's tensors, from either place that megatron-core has used.

    Raises:
        UserError: they are absent, damaged, or more than plain values and tensors; names the file.
    """
    path = directory / COMMON_NAME
    try:
        if path.is_file():
            values = torch.load(path, map_location="cpu", weights_only=True)
        else:
            path = directory
            stored = CheckpointReader(directory).common()
            if stored is None:
                raise UserError(f"{directory}: holds tensors and no plain values; it is no run's checkpoint")
            (values,) = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({quote(reason)}); the checkpoint is damaged, or is not one"
        ) from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: holds a {type(values).__name__}, expected a dictionary; the checkpoint is damaged, "
            "or is not one"
        )
    return values


def stacked_key(name: str) -> str:
    """Return the key under which megatron-core stacks a layer's parameter with the other layers'."""
    return LAYER_PREFIX + name[len(LAYER_PREFIX) :].split(".", 1)[1]


class _PiecePlanner(DefaultSavePlanner):
    """Plans pieces instead of a state dict, and loads each when the writer asks for it."""

    def __init__(
        self, content: Sequence[Piece], num_layers: int, load: Callable[[Piece], torch.Tensor]
    ) -> None:
        super().__init__(flatten_state_dict=False)
        self._load, self._num_layers = load, num_layers
        self._by_index: dict[tuple[str, torch.Size | None], Piece | None] = {}
        self._items = [self._item(piece) for piece in content]
        for module in STATEFUL_MODULES:
            for layer in range(num_layers):
                index = MetadataIndex(f"{LAYER_PREFIX}{module}._extra_state/shard_{layer}_{num_layers}")
                self._items.append(WriteItem(index, WriteItemType.BYTE_IO))
        self._items.append(WriteItem(MetadataIndex(STATEFUL_NORM), WriteItemType.BYTE_IO))

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self._items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            empty = io.BytesIO()
            torch.save([None], empty)
            return empty
        piece = self._by_index[write_item.index.fqn, write_item.index.offset]
        assert piece is not None
        rows = self._load(piece)
        return rows if piece.parameter.layer is None else rows[None]

    def _item(self, piece: Piece) -> WriteItem:
        name, layer = piece.parameter.names[-1], piece.parameter.layer
        shape = piece.parameter.megatron(0, 1).shape
        lead = () if layer is None else (layer,)
        offset = torch.Size((*lead, piece.first_row, *(0 for _ in shape[1:])))
        sizes = torch.Size((*(1 for _ in lead), piece.stop_row - piece.first_row, *shape[1:]))
        index = MetadataIndex(name if layer is None else stacked_key(name), offset)
        self._by_index[index.fqn, offset] = piece
        whole = torch.Size((*((self._num_layers,) if lead else ()), *shape))
        data = TensorWriteData(
            ChunkStorageMetadata(offset, sizes), TensorProperties(dtype=piece.dtype), whole
        )
        return WriteItem(index, WriteItemType.SHARD, tensor_data=data)


class _IntoTensor(LoadPlanner):
    """Gives every read item its place in one target tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        place = self._target
        for dim, (first, extent) in enumerate(zip(read_item.dest_offsets, read_item.lengths)):
            place = place.narrow(dim, first, extent)
        return place

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Do nothing: the tensor was filled in place."""

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Do nothing: the caller makes the plan."""

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Do nothing: no bytes are ever planned."""


class _SafeReader(FileSystemReader):
    """Reads the metadata file with `read_metadata`, which cannot run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_metadata(Path(self.path))
