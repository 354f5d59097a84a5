"""Trees in memory that several processes see: written once, read as views, never pickled."""

from __future__ import annotations

import mmap
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from atoll import tree
from atoll.types import Tree

_ALIGN = 64
_NORESERVE = 0x4000 if hasattr(mmap, "MAP_POPULATE") else 0  # Linux: address space now, pages when touched


class Placed(NamedTuple):
    """Where a tree lies in an arena: enough for another process to read it."""

    offset: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]  # one entry: all tensors have it and lie without gaps


class Arena:
    """Anonymous shared memory, made before a fork and seen by both sides; one side hands out its slots.

    It is address space until touched, so it is made large; it has no name, so that a killed process leaves nothing.
    """

    def __init__(self, size_bytes: int = 1 << 38) -> None:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE
        while True:  # a machine that refuses that much address space gets less
            try:
                self._map = mmap.mmap(-1, size_bytes, flags=flags)
                break
            except (OSError, ValueError):
                size_bytes //= 4
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._end = 0
        self._capacity: dict[int, int] = {}  # by offset, every slot ever made
        self._free: list[int] = []

    def write(self, values: Tree) -> Placed:
        """Copy a tree into a free slot."""
        if isinstance(values, tree.Flat):
            dtypes: tuple[torch.dtype, ...] = (values.buffer.dtype,)
            offset = self._slot(tree.size_bytes(values))
            self._view(offset, values.buffer.numel(), values.buffer.dtype).copy_(values.buffer)
        else:
            dtypes = tuple(x.dtype for x in values.values())
            offset = self._slot(sum(_padded(x.numel() * x.element_size()) for x in values.values()))
            at = offset
            for x in values.values():
                self._view(at, x.numel(), x.dtype).copy_(x.reshape(-1))
                at += _padded(x.numel() * x.element_size())
            if len(dtypes) == 1:
                dtypes = (*dtypes, *dtypes)  # a single tensor that is not flat: say so by naming its dtype twice
        shapes = values.layout.shapes if isinstance(values, tree.Flat) else (x.shape for x in values.values())
        return Placed(offset, tuple(values), tuple(tuple(s) for s in shapes), dtypes)

    def read(self, placed: Placed) -> Tree:
        """The tree as views of the arena: valid until its slot is freed."""
        shapes = tuple(torch.Size(s) for s in placed.shapes)
        if len(placed.dtypes) == 1:
            total = sum(s.numel() for s in shapes)
            return tree.Flat(tree.Layout(placed.names, shapes), self._view(placed.offset, total, placed.dtypes[0]))
        found, at = dict[str, Tensor](), placed.offset
        for name, shape, dtype in zip(placed.names, shapes, placed.dtypes, strict=False):
            found[name] = self._view(at, shape.numel(), dtype).view(shape)
            at += _padded(shape.numel() * dtype.itemsize)
        return found

    def free(self, placed: Placed) -> None:
        """The slot may be written again."""
        self._free.append(placed.offset)

    def _slot(self, size_bytes: int) -> int:
        for i, offset in enumerate(self._free):
            if self._capacity[offset] >= size_bytes:
                return self._free.pop(i)
        offset, self._end = self._end, self._end + _padded(max(size_bytes, 1))
        if self._end > len(self._bytes):
            raise MemoryError(f"an arena of {len(self._bytes)} bytes is full")
        self._capacity[offset] = self._end - offset
        return offset

    def _view(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        return self._bytes[offset : offset + count * dtype.itemsize].view(dtype)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGN) * _ALIGN
