"""Trees in memory that several processes see: written once, read as views, never pickled."""

from __future__ import annotations

import mmap
import warnings
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from atoll import tree
from atoll.types import Tree

_ALIGN = 64
_NORESERVE = 0x4000 if hasattr(mmap, "MAP_POPULATE") else 0  # Linux: address space now, pages when touched


class Form(NamedTuple):
    """What a tree is without its numbers."""

    layout: tree.Layout
    dtypes: tuple[torch.dtype, ...]  # one entry: all tensors have it and lie without gaps


class Placed(NamedTuple):
    """Where a tree lies in an arena: enough for another process to read it."""

    offset: int
    form: Form


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
        self._form: Form | None = None  # of the last flat tree written: the next one has most likely the same
        self._views: dict[int, tuple[Form, Tree]] = {}  # by offset: slots are used again and again for the like

    def write(self, values: Tree) -> Placed:
        """Copy a tree into a free slot."""
        if isinstance(values, tree.Flat):
            if self._form is None or self._form.layout is not values.layout or self._form.dtypes[0] != values.buffer.dtype:
                self._form = Form(values.layout, (values.buffer.dtype,))
            placed = Placed(self._slot(tree.size_bytes(values)), self._form)
            self._view(placed.offset, values.buffer.numel(), values.buffer.dtype).copy_(values.buffer)
            return placed
        dtypes = tuple(x.dtype for x in values.values())
        offset = at = self._slot(sum(_padded(x.numel() * x.element_size()) for x in values.values()))
        for x in values.values():
            self._view(at, x.numel(), x.dtype).copy_(x.reshape(-1))
            at += _padded(x.numel() * x.element_size())
        if len(dtypes) == 1:
            dtypes = (*dtypes, *dtypes)  # a single tensor that is not flat: say so by naming its dtype twice
        return Placed(offset, Form(tree.Layout(tuple(values), tuple(x.shape for x in values.values())), dtypes))

    def read(self, placed: Placed) -> Tree:
        """The tree as views of the arena: valid until its slot is freed."""
        offset, form = placed
        seen = self._views.get(offset)
        if seen is None or seen[0] is not form:
            seen = self._views[offset] = (form, self._tree(placed))
        return seen[1]

    def free(self, offset: int) -> None:
        """The slot may be written again."""
        self._free.append(offset)

    def _tree(self, placed: Placed) -> Tree:
        (names, shapes), dtypes = placed.form
        if len(dtypes) == 1:
            total = sum(s.numel() for s in shapes)
            return tree.Flat(placed.form.layout, self._view(placed.offset, total, dtypes[0]))
        found, at = dict[str, Tensor](), placed.offset
        for name, shape, dtype in zip(names, shapes, dtypes, strict=False):
            found[name] = self._view(at, shape.numel(), dtype).view(shape)
            at += _padded(shape.numel() * dtype.itemsize)
        return found

    def _slot(self, size_bytes: int) -> int:
        """The tightest free slot that fits, of several the one freed last: its pages may still be in a cache."""
        fit = [offset for offset in reversed(self._free) if self._capacity[offset] >= size_bytes]
        if fit:
            offset = min(fit, key=self._capacity.__getitem__)
            self._free.remove(offset)
            return offset
        offset, self._end = self._end, self._end + _padded(max(size_bytes, 1))
        if self._end > len(self._bytes):
            raise MemoryError(f"an arena of {len(self._bytes)} bytes is full")
        self._capacity[offset] = self._end - offset
        return offset

    def _view(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        return self._bytes[offset : offset + count * dtype.itemsize].view(dtype)


@dataclass(slots=True)
class _Post:
    values: Tree  # kept, so that its id stays its own
    placed: Placed
    readers: int = 0


class Board:
    """Trees on their way to workers, each written once for all who are to read it."""

    def __init__(self) -> None:
        self.arena = Arena()
        self._posts: dict[int, _Post] = {}  # by id of the tree
        self._keys: dict[int, int] = {}  # by offset
        self._newest: _Post | None = None  # stays, though nobody may read it now: the rest of the cohort will

    def post(self, values: Tree, for_many: bool) -> Placed:
        """Where a tree lies for one more reader; written unless it is there already."""
        found = self._posts.get(id(values))
        if found is None:
            found = self._posts[id(values)] = _Post(values, self.arena.write(values))
            self._keys[found.placed.offset] = id(values)
            if for_many:
                before, self._newest = self._newest, found
                if before is not None and not before.readers:
                    self._drop(before)
        found.readers += 1
        return found.placed

    def unpost(self, placed: Placed) -> None:
        """A reader less."""
        found = self._posts[self._keys[placed.offset]]
        found.readers -= 1
        if not found.readers and found is not self._newest:
            self._drop(found)

    def _drop(self, post: _Post) -> None:
        del self._posts[self._keys.pop(post.placed.offset)]
        self.arena.free(post.placed.offset)


Told: TypeAlias = "tuple[int, int] | tuple[int, int, Form]"


class Forms:
    """One end of a pipe: a form is told in full once, then by its number."""

    def __init__(self) -> None:
        self._told: dict[Form, int] = {}
        self._last: tuple[Form | None, int] = (None, 0)
        self._heard: list[Form] = []

    def tell(self, placed: Placed) -> Told:
        """What to send."""
        if placed.form is self._last[0]:
            return placed.offset, self._last[1]
        number = self._told.get(placed.form)
        if number is None:
            self._last = placed.form, self._told.setdefault(placed.form, len(self._told))
            return placed.offset, self._last[1], placed.form
        self._last = placed.form, number
        return placed.offset, number

    def hear(self, told: Told) -> Placed:
        """What was sent, with a form that is the same object every time."""
        if len(told) == 3:  # one of our own, most likely: then trees that come and go have one layout, and agree at a glance
            self._heard.append(next((form for form in self._told if form == told[2]), told[2]))
        return Placed(told[0], self._heard[told[1]])


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGN) * _ALIGN
