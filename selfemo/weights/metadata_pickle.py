"""Read the metadata file of a torch.distributed.checkpoint, a pickle by torch's design, as a record
of tensors only.

Only the classes that such a file is made of can be named in it, each by its full name: their
modules also hold functions, and one that looks up an attribute of torch by name is enough to run
code. The result is then checked field by field, because unpickling fills records without any check:
a shape must be a shape, and data must lie in files of the same directory.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from selfemo.common.errors import UserError
from selfemo.common.printable import quote

METADATA_NAME = ".metadata"
MAX_METADATA_BYTES = 256 << 20
"""Largest metadata file that is read; a checkpoint has some hundred bytes per shard."""
_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        *(
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
        ),
        *("TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.planner": (
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": (
        *("Size", "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    ),
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),
}
_RENAMED = {"pathlib._local": "pathlib"}
"""Modules that exist only in some Python versions: 3.13 pickles its paths under pathlib._local."""


def read_metadata(directory: Path) -> Metadata:
    """Read the metadata of a checkpoint.

    Raises:
        UserError: there is none, it is damaged, or it asks for anything but tensor records of files
            beside it; names the file.
    """
    path = directory / METADATA_NAME
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_METADATA_BYTES:
            raise UserError(
                f"{path}: is {size_bytes} bytes, expected at most {MAX_METADATA_BYTES}; it is no "
                "checkpoint's metadata"
            )
        with path.open("rb") as file:
            metadata = _RecordsOnly(file).load()
        _check(metadata)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a Megatron distributed checkpoint") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check that it is a readable file"
        ) from None
    except _UNPICKLING as error:
        raise UserError(
            f"{path}: not checkpoint metadata ({str(error)[:200]}); the checkpoint is damaged, or is not one"
        ) from None
    checked: Metadata = metadata
    return checked


_UNPICKLING = (
    *(pickle.UnpicklingError, EOFError, AttributeError, LookupError, ValueError, ImportError, TypeError),
    *(RuntimeError, MemoryError, ArithmeticError, AssertionError),
)
"""Exceptions that a damaged pickle raises: those of the records' own constructors, and MemoryError
for a length that the file does not have.
"""


class _RecordsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _RECORDS.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of such metadata")
        return super().find_class(_RENAMED.get(module, module), name)


def _check(metadata: Any) -> None:
    """Check every field that reading relies on.

    Raises:
        TypeError, ValueError, AttributeError: a field has another type, or a value outside its
            range.
    """
    _expect(metadata, Metadata)
    for key, stored in _expect(metadata.state_dict_metadata, dict).items():
        _expect(key, str)
        if not isinstance(stored, BytesStorageMetadata):
            _check_tensor(_expect(stored, TensorStorageMetadata))
    storage: Mapping[Any, Any] = _expect(metadata.storage_data, dict)
    for index, place in storage.items():
        _expect(_expect(index, MetadataIndex).fqn, str)
        name = _expect(_expect(place, _StorageInfo).relative_path, str)
        if Path(name).name != name or name in ("", "..") or not name.isprintable():
            raise ValueError(f"data in {quote(name)}, expected a file of the same directory")
        if place.__dict__.get("transform_descriptors"):
            raise ValueError("data that is compressed or encrypted")
        if min(_expect(place.offset, int), _expect(place.length, int)) < 0:
            raise ValueError("a negative place in a file")


def _check_tensor(stored: TensorStorageMetadata) -> None:
    _expect(_expect(stored.properties, TensorProperties).dtype, torch.dtype)
    rank = len(_expect(stored.size, torch.Size))
    for chunk in _expect(stored.chunks, list):
        offsets, sizes = (
            _expect(_expect(chunk, ChunkStorageMetadata).offsets, torch.Size),
            _expect(chunk.sizes, torch.Size),
        )
        if not rank == len(offsets) == len(sizes) or min((*stored.size, *offsets, *sizes), default=0) < 0:
            raise ValueError("a shard whose place is not in its tensor")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value
