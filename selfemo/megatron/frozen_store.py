"""Keeps on disk what frozen layers made of a prompt and its completions (train.frozen_cache_dir), so that the
runs of a study, which freeze the same layers of the same model, compute it once.

One file per piece, under a directory whose name is a digest of the frozen weights and of everything else that
decides the bits. What is read is what was computed, so a run takes the same steps with it and without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from selfemo.common.errors import UserError
from selfemo.common.files import new_file

ROWS = "rows"
"""Name of the one tensor of a file."""


class FrozenStore:
    """A directory of pieces' rows, shared by runs and ranks."""

    def __init__(self, root: Path, computed_by: str) -> None:
        """Take the directory; nothing is read or written yet.

        Args:
            computed_by: names what decides the rows besides the frozen weights and the piece.
        """
        self._root, self._computed_by = root, computed_by
        self._weights: list[torch.Tensor] = []

    def watch(self, weights: Iterable[torch.Tensor]) -> None:
        """Add to the frozen weights of this rank, which decide the rows."""
        self._weights += weights

    def forget(self) -> None:
        """Note that the frozen weights have got other values."""
        self.__dict__.pop("_place", None)

    @cached_property
    def _place(self) -> Path:
        told = hashlib.blake2b(self._computed_by.encode(), digest_size=16)
        for weight in self._weights:
            told.update(weight.detach().contiguous().view(torch.uint8).cpu().numpy())
        return self._root / told.hexdigest()

    def find(self, digest: bytes, device: torch.device) -> torch.Tensor | None:
        """Return the rows [t, 1, H] of a piece, or None.

        Raises:
            UserError: their file is damaged or cannot be read; names it.
        """
        file = self._file(digest)
        try:
            return load(file.read_bytes())[ROWS].to(device)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read ({error.strerror}): make it readable, or name another directory as "
                "train.frozen_cache_dir"
            ) from None
        except (SafetensorError, KeyError):
            raise UserError(f"{file}: not rows that a run kept: remove it") from None

    def keep(self, digest: bytes, rows: torch.Tensor) -> None:
        """Write the rows [t, 1, H] of a piece. Another process may write the same ones at the same time.

        Raises:
            UserError: the file cannot be written; names it.
        """
        file = self._file(digest)
        with new_file(file, "train.frozen_cache_dir") as temporary:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(save({ROWS: rows.contiguous().cpu()}))

    def _file(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._place / name[:2] / f"{name}.safetensors"  # few files in one directory
