"""Convert Hugging Face directories to Megatron distributed checkpoints and back, in memory bounded
by a bucket.

Tensors keep their stored dtype and every bit. A checkpoint made here carries the config and
tokenizer of its source in `hf/`, so that the way back needs nothing else. Output appears under its
name only after it is complete (and, with `verify`, compared).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from selfemo.common.errors import UserError
from selfemo.common.pending import new_directory
from selfemo.models.architecture import CONFIG_NAME, Architecture, read_architecture
from selfemo.models.geometry import Shape, fill_hf, region
from selfemo.models.parameters import Parameter, hf_tensor_list, model_parameters
from selfemo.weights.export import copy_companions
from selfemo.weights.hf_directory import HfDirectory
from selfemo.weights.safetensors_writer import DEFAULT_SHARD_BYTES, SafetensorsWriter
from selfemo.weights.torch_dist import CheckpointReader, Piece, pieces, write_checkpoint

COMPANIONS_NAME = "hf"
"""Folder of a converted checkpoint that holds config, tokenizer, chat template and generation
config.
"""
DEFAULT_BUCKET_BYTES = 16 << 20
"""Small enough for the C library to recycle buffers. For larger ones it maps fresh pages each time,
which would double the time.
"""
Progress = Callable[[str, int], None]
"""Called with a tensor's name and the bytes of it that were just converted or compared."""
_BITS = {4: torch.int32, 2: torch.int16}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Size of a finished conversion, and whether it was verified."""

    architecture: Architecture
    tensors: int
    bytes: int
    verified: bool


def hf_to_megatron(
    hf_dir: str | Path,
    output: str | Path,
    progress: Progress,
    verify: bool = False,
    check_finite: bool = False,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
) -> Conversion:
    """Write a Megatron checkpoint of a Hugging Face directory.

    Args:
        progress: called after each piece.
        verify: read both sides again and compare every tensor bitwise.
        check_finite: refuse NaN and infinite values.
        bucket_bytes: the most that is held in memory at a time.

    Raises:
        UserError: the source is unsupported or damaged, the output exists, or the disk is full;
            names file or tensor.
    """
    architecture = read_architecture(hf_dir)
    source = HfDirectory(hf_dir)
    source.check(architecture)
    parameters = [parameter for parameter in model_parameters(architecture) if not parameter.is_tied_copy]
    content = [piece for p in parameters for piece in pieces(p, _common_dtype(source, p), bucket_bytes)]
    total_bytes = source_bytes(source, architecture)

    def load(piece: Piece) -> torch.Tensor:
        rows = _read_piece(source, piece, check_finite)
        progress(piece.parameter.name, rows.numel() * rows.element_size())
        return rows

    with new_directory(output, total_bytes) as pending:
        (pending / COMPANIONS_NAME).mkdir()
        copy_companions(source.path, pending / COMPANIONS_NAME, architecture, architecture.dtype)
        common = {"architecture": dataclasses.asdict(architecture)}
        write_checkpoint(pending, content, architecture.num_layers, common, load)
        if verify:
            compare(source, CheckpointReader(pending), architecture, progress)
    source.close()
    return Conversion(architecture, len(hf_tensor_list(architecture)), total_bytes, verify)


def megatron_to_hf(
    checkpoint: str | Path,
    output: str | Path,
    progress: Progress,
    source_dir: str | Path = "",
    verify: bool = False,
    check_finite: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Conversion:
    """Write a Hugging Face directory of a Megatron checkpoint, whatever layout saved it.

    Optimizer state is left behind.

    Args:
        source_dir: directory with config.json and tokenizer; empty takes the checkpoint's own
            `hf/`.
        verify: read both sides again and compare every tensor bitwise.
        check_finite: refuse NaN and infinite values.
        max_shard_bytes: largest safetensors file; a single larger tensor gets a file of its own.

    Raises:
        UserError: the checkpoint is damaged or of another model, the output exists, or the disk is
            full; names file or tensor.
    """
    source = _companions(checkpoint, source_dir)
    architecture = read_architecture(source)
    reader = CheckpointReader(checkpoint)
    parameters = _stored_parameters(reader, architecture)
    declared = [(tensor, reader.dtype(parameter)) for parameter in parameters for tensor in parameter.tensors]
    total_bytes = sum(tensor.elements * dtype.itemsize for tensor, dtype in declared)
    with new_directory(output, total_bytes) as pending:
        copy_companions(source, pending, architecture, _usual_dtype([dtype for _, dtype in declared]))
        writer = SafetensorsWriter(
            pending, [tensor for tensor, _ in declared], [dtype for _, dtype in declared], max_shard_bytes
        )
        for name, tensor in checkpoint_tensors(reader, parameters):
            if check_finite:
                _refuse_non_finite(tensor, name, str(reader.directory))
            writer.write(name, tensor)
            progress(name, tensor.numel() * tensor.element_size())
        writer.finish()
        if verify:
            compare(HfDirectory(pending), reader, architecture, progress)
    return Conversion(architecture, len(declared), total_bytes, verify)


def compare(
    hf: HfDirectory, reader: CheckpointReader, architecture: Architecture, progress: Progress
) -> None:
    """Read both sides again and compare every tensor bitwise.

    Raises:
        UserError: a tensor differs, or one side has a tensor that the architecture lacks; names the
            first.
    """
    hf.check(architecture)
    for name, tensor in checkpoint_tensors(reader, _stored_parameters(reader, architecture)):
        stored = hf.read(name)
        bits = _BITS[tensor.dtype.itemsize]
        if stored.dtype != tensor.dtype or not torch.equal(stored.view(bits), tensor.view(bits)):
            raise UserError(
                f"{hf.path}: tensor {name} differs from {reader.directory}; convert again, and suspect "
                "disk or memory"
            )
        progress(name, tensor.numel() * tensor.element_size())
    hf.close()


def checkpoint_tensors(
    reader: CheckpointReader, parameters: list[Parameter]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every Hugging Face tensor of a checkpoint, one Megatron parameter at a time.

    The tensors lie in buffers that the next layer reuses: copy them before advancing.
    """
    buffers: dict[object, torch.Tensor] = {}

    def buffer(slot: int, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Return the same memory for the same purpose in every layer."""
        if (slot, shape, dtype) not in buffers:
            buffers[slot, shape, dtype] = torch.empty(shape, dtype=dtype)
        return buffers[slot, shape, dtype]

    for parameter in parameters:
        dtype, placement = reader.dtype(parameter), parameter.megatron(0, 1)
        tensors = {
            tensor.name: buffer(slot, tensor.shape, dtype) for slot, tensor in enumerate(parameter.tensors)
        }
        if len(placement.boxes) == 1:
            reader.read_into(parameter, placement.boxes[0].local_start, tensors[placement.boxes[0].tensor])
        else:
            fused = buffer(-1, placement.shape, dtype)
            reader.read_into(parameter, (0,) * fused.ndim, fused)
            fill_hf(tensors, placement, fused)
        yield from tensors.items()


def source_bytes(source: HfDirectory, architecture: Architecture) -> int:
    """Count the bytes of all tensors in a Hugging Face directory that belong to the model."""
    return sum(source.tensors[tensor.name].bytes for tensor in hf_tensor_list(architecture))


def stored_bytes(checkpoint: str | Path, source_dir: str | Path = "") -> int:
    """Count the bytes of the model's tensors in a checkpoint."""
    reader = CheckpointReader(checkpoint)
    parameters = _stored_parameters(reader, read_architecture(_companions(checkpoint, source_dir)))
    return sum(
        tensor.elements * reader.dtype(parameter).itemsize
        for parameter in parameters
        for tensor in parameter.tensors
    )


def _companions(checkpoint: str | Path, source_dir: str | Path) -> Path:
    """Return the directory that has config and tokenizer."""
    source = Path(source_dir) if source_dir else Path(checkpoint) / COMPANIONS_NAME
    if not (source / CONFIG_NAME).exists():
        raise UserError(
            f"{source}: no {CONFIG_NAME}; name the directory that has the model's config and tokenizer "
            "with --source"
        )
    return source


def _stored_parameters(reader: CheckpointReader, architecture: Architecture) -> list[Parameter]:
    """Return the model's parameters, after checking that the checkpoint has each in its shape, and
    no other.
    """
    parameters = [parameter for parameter in model_parameters(architecture) if not parameter.is_tied_copy]
    for parameter in parameters:
        reader.check(parameter, architecture.num_layers)
    reader.check_no_more(parameters)
    return parameters


def _read_piece(source: HfDirectory, piece: Piece, check_finite: bool) -> torch.Tensor:
    """Read some rows of a Megatron parameter from the Hugging Face tensors it is made of."""
    placement = piece.parameter.megatron(0, 1)
    rows = torch.empty((piece.stop_row - piece.first_row, *placement.shape[1:]), dtype=piece.dtype)
    if not placement.is_whole:
        rows.zero_()
    for box in placement.boxes:
        part = box.clip_rows(piece.first_row, piece.stop_row)
        if part is not None:
            target = rows[region((part.local_start[0] - piece.first_row, *part.local_start[1:]), part.shape)]
            source.read_into(part.tensor, part.start, target)
            if check_finite:
                _refuse_non_finite(target, part.tensor, str(source.tensors[part.tensor].path))
    return rows


def _refuse_non_finite(values: torch.Tensor, name: str, where: str) -> None:
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise UserError(
            f"{where}: tensor {name} holds {count} values that are NaN or infinite; the weights are damaged"
        )


def _common_dtype(source: HfDirectory, parameter: Parameter) -> torch.dtype:
    """Return the dtype of a parameter's tensors; one fused tensor requires one dtype."""
    dtypes = {source.tensors[tensor.name].dtype for tensor in parameter.tensors}
    if len(dtypes) > 1:
        names = ", ".join(
            f"{tensor.name} ({source.tensors[tensor.name].dtype})" for tensor in parameter.tensors
        )
        raise UserError(
            f"{source.path}: {names} are fused in Megatron and must have one dtype; convert the weights "
            "to one first"
        )
    return dtypes.pop()


def _usual_dtype(dtypes: list[torch.dtype]) -> str:
    return str(max(set(dtypes), key=dtypes.count)).removeprefix("torch.")
