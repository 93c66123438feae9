"""Counts bytes, so that "one read forward, one read and one write backward" is an assertion and not a claim.

There are two meters. `TorchMeter` watches torch operators on any device: the bytes that an operator
reads and writes count if they belong to a tensor too large for the cache, since a chunk that stays in
the cache costs no memory traffic; it also tracks the peak of live tensors. `interpreted_traffic`
watches the Triton kernels themselves in Triton's interpreter: every address that they load from or
store to within one tensor. Both count per element, so the figures hold for any number of tokens and any
vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfemo.kernels.row_threads import set_num_threads

VIEWS = frozenset(
    {
        "view",
        "_unsafe_view",
        "slice",
        "select",
        "expand",
        "unsqueeze",
        "squeeze",
        "detach",
        "t",
        "transpose",
        "permute",
    }
    | {"alias", "as_strided", "reshape", "split", "unbind"}
)
ALLOCATIONS = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})
FILLS = frozenset(
    {
        "fill_",
        "zero_",
        "zeros",
        "zeros_like",
        "new_zeros",
        "ones",
        "ones_like",
        "new_ones",
        "full",
        "full_like",
        "new_full",
    }
)
"""Operators that read no tensor: a tensor argument only lends its shape, or is overwritten."""
OVERWRITES = frozenset({"copy_", "index_put_", "scatter_", "masked_fill_"})
"""Operators that read every argument but the first, which they overwrite."""


@dataclass
class Counted:
    """Bytes loaded and bytes stored."""

    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Bytes in both directions."""
        return self.read_bytes + self.written_bytes


class TorchMeter(TorchDispatchMode):
    """Sums, while active, the memory traffic of torch operators, and follows the bytes of tensors that
    they allocate.

    Operands in storages of at most `cache_bytes` count as traffic-free. Gathers and scatters along one
    column per row, and boolean assignments, count the elements they touch. It sees the operators of its
    own thread, so torch gets one thread meanwhile.
    """

    def __init__(self, cache_bytes: int) -> None:
        super().__init__()
        self.counted = Counted()
        self.peak_bytes = 0
        self._cache_bytes = cache_bytes
        self._live_bytes = 0
        self._known: dict[int, int] = {}
        self._threads = 1

    def __enter__(self) -> TorchMeter:
        self._threads = torch.get_num_threads()
        set_num_threads(1)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        set_num_threads(self._threads)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            self._known.setdefault(tensor.untyped_storage()._cdata, 0)  # not allocated by a watched operator
        touched = self._elements_by_index(name, args)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name not in VIEWS and name not in ALLOCATIONS:
            self._count(name, inputs, outputs, touched)
        for tensor in outputs:
            self._follow(tensor)
        return result

    def _elements_by_index(self, name: str, args: tuple[Any, ...]) -> int | None:
        """Count the elements of the large tensor that an indexed operator touches; None for any other
        operator.
        """
        if name in ("gather", "scatter_add", "scatter_add_"):
            return int(args[2].numel())
        if name in ("index", "index_put_", "index_put", "index_select"):
            return (
                int(args[0][tuple(slice(None) if i is None else i for i in args[1])].numel())
                if isinstance(args[1], list | tuple)
                else None
            )
        return None

    def _count(self, name: str, inputs: list[Tensor], outputs: list[Tensor], touched: int | None) -> None:
        if name not in FILLS:
            for position, tensor in enumerate(inputs):
                if position > 0 or name not in OVERWRITES:
                    self.counted.read_bytes += self._bytes(tensor, touched if position == 0 else None)
        for tensor in outputs:
            self.counted.written_bytes += self._bytes(tensor, touched if name.endswith("_") else None)

    def _bytes(self, tensor: Tensor, touched: int | None) -> int:
        if tensor.untyped_storage().nbytes() <= self._cache_bytes:
            return 0
        return (tensor.numel() if touched is None else touched) * tensor.element_size()

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = size
        self._live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live_bytes -= self._known.pop(key, 0)


@contextmanager
def interpreted_traffic(watched: Tensor) -> Iterator[Counted]:
    """Count the bytes that Triton kernels load from and store to `watched` in Triton's interpreter.

    The process must have TRITON_INTERPRET=1.
    """
    from triton.runtime import interpreter

    builder, counted = interpreter.interpreter_builder, Counted()
    begin, end = watched.data_ptr(), watched.data_ptr() + watched.untyped_storage().nbytes()
    load, store = builder.create_masked_load, builder.create_masked_store

    def bytes_inside(pointers: Any, mask: Any) -> int:
        hit = (pointers.data >= begin) & (pointers.data < end) & np.asarray(mask.data, dtype=bool)
        return int(np.count_nonzero(hit)) * watched.element_size()

    def counting_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        counted.read_bytes += bytes_inside(pointers, mask)
        return load(pointers, mask, *rest)

    def counting_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counted.written_bytes += bytes_inside(pointers, mask)
        return store(pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = counting_load, counting_store
    try:
        yield counted
    finally:
        # instance attributes hide the class's own, which stay as they are
        del (
            builder.create_masked_load,
            builder.create_masked_store,
        )
