"""Arithmetic on trees; every function that takes two checks that they agree and says where they do not.

A tree may be a `Flat`: views of one contiguous buffer. Then loading, adding and scaling are one operation each,
whatever the number of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from atoll.errors import TreeError
from atoll.types import Tree

T = TypeVar("T")


class Layout(NamedTuple):
    """Names and shapes of the tensors that lie one after another in a buffer."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]


class Flat(Mapping[str, Tensor]):
    """A tree whose tensors are views of one 1-D buffer, in the order of its layout.

    >>> tree = pack({"w": torch.ones(2, 2), "b": torch.zeros(2)})
    >>> tree.buffer.tolist(), tree["w"].shape
    ([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], torch.Size([2, 2]))
    """

    __slots__ = ("_views", "buffer", "layout")

    def __init__(self, layout: Layout, buffer: Tensor) -> None:
        self.layout = layout
        self.buffer = buffer
        self._views: dict[str, Tensor] | None = None

    def views(self) -> dict[str, Tensor]:
        """The tensors by name; made once, on first use."""
        if self._views is None:
            names, shapes = self.layout
            pieces = self.buffer.split_with_sizes([shape.numel() for shape in shapes])
            self._views = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return self._views

    def __getitem__(self, name: str) -> Tensor:
        return self.views()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.names)

    def __repr__(self) -> str:
        return f"Flat({len(self)} tensors, {self.buffer.numel()} x {self.buffer.dtype})"


def pack(tree: Tree) -> Tree:
    """A copy of the tree as views of one buffer; a plain copy where its dtypes or devices differ."""
    if isinstance(tree, Flat):
        return Flat(tree.layout, _room(tree.buffer.numel(), tree.buffer).copy_(tree.buffer))
    kinds = {(x.dtype, x.device) for x in tree.values()}
    if len(kinds) != 1:
        return {name: x.detach().clone() for name, x in tree.items()}
    layout = Layout(tuple(tree), tuple(x.shape for x in tree.values()))
    pieces = [x.detach().reshape(-1) for x in tree.values()]
    return Flat(layout, torch.cat(pieces, out=_room(sum(len(x) for x in pieces), pieces[0])))


class Rows:
    """Room for what several clients pack, each in its turn: the n-th tree of each lies at one distance from the next's.

    >>> rows, w = Rows(2), {"w": torch.ones(3)}
    >>> packed = [rows.of(i, lambda: pack(w)) for i in range(2)]
    >>> packed[1]["w"].storage_offset() - packed[0]["w"].storage_offset()
    3
    """

    def __init__(self, count: int) -> None:
        self._count, self._place, self._nth = count, 0, 0
        self._blocks: dict[tuple[Any, ...], Tensor] = {}

    def of(self, place: int, pack_: Callable[[], T]) -> T:
        """Do something that packs trees, for the client at that place."""
        self._place, self._nth = place, 0
        token = _ROWS.set(self)
        try:
            return pack_()
        finally:
            _ROWS.reset(token)

    def take(self, size: int, like: Tensor) -> Tensor:
        """The room of the next tree of the client whose turn it is."""
        self._nth += 1
        key = (self._nth, size, like.dtype, like.device)
        if key not in self._blocks:
            self._blocks[key] = like.new_empty(self._count, size)
        return self._blocks[key][self._place]


_ROWS: ContextVar[Rows | None] = ContextVar("rows", default=None)


def _room(size: int, like: Tensor) -> Tensor:
    rows = _ROWS.get()
    return like.new_empty(size) if rows is None else rows.take(size, like)


def agree(a: Tree, b: Tree) -> None:
    """Raise TreeError unless both trees have the same names and shapes.

    >>> agree({"w": torch.zeros(2)}, {"v": torch.zeros(2)})
    Traceback (most recent call last):
    atoll.errors.TreeError: trees disagree: only one side has v, w
    """
    if isinstance(a, Flat) and isinstance(b, Flat) and (a.layout is b.layout or a.layout == b.layout):
        return
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise TreeError(f"trees disagree: only one side has {', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}")
    for name, x in a.items():
        if x.shape != b[name].shape:
            raise TreeError(f"trees disagree on {name}: {tuple(x.shape)} against {tuple(b[name].shape)}")


def map(f: Callable[..., Tensor], *trees: Tree) -> Tree:
    """Apply an element-wise `f` to the tensors of one name; on flat trees it is applied once, to the buffers."""
    first = trees[0]
    for other in trees[1:]:
        agree(first, other)
    if isinstance(first, Flat) and all(isinstance(t, Flat) and t.layout.names == first.layout.names for t in trees):
        return Flat(first.layout, f(*(t.buffer for t in trees if isinstance(t, Flat))))
    return {name: f(*(t[name] for t in trees)) for name in first}


def add(a: Tree, b: Tree) -> Tree:
    """a + b, in the dtypes of a.

    >>> add({"w": torch.ones(1)}, {"w": torch.ones(1)})["w"].tolist()
    [2.0]
    """
    return map(lambda x, y: x + y.to(x.dtype), a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """a - b, in the dtypes of a."""
    return map(lambda x, y: x - y.to(x.dtype), a, b)


def scale(a: Tree, by: float) -> Tree:
    """a * by."""
    return map(lambda x: x * by, a)


def axpy_(a: Tree, b: Tree, alpha: float = 1.0) -> Tree:
    """a += alpha * b in place; returns a.

    >>> axpy_({"w": torch.ones(1)}, {"w": torch.ones(1)}, alpha=0.5)["w"].tolist()
    [1.5]
    """
    agree(a, b)
    if isinstance(a, Flat) and isinstance(b, Flat) and a.layout.names == b.layout.names:
        a.buffer.add_(b.buffer, alpha=alpha)
    else:
        for name, x in a.items():
            x.add_(b[name], alpha=alpha)
    return a


def zeros(like: Tree) -> Tree:
    """A tree of zeros with the names, shapes and dtypes of another."""
    return map(torch.zeros_like, like)


def dot(a: Tree, b: Tree) -> float:
    """The inner product over all entries, summed in float64 across tensors."""
    agree(a, b)
    if isinstance(a, Flat) and isinstance(b, Flat) and a.layout.names == b.layout.names:
        return float(torch.dot(a.buffer.float(), b.buffer.float()))
    return sum(float(torch.dot(x.reshape(-1).float(), b[name].reshape(-1).float())) for name, x in a.items())


def norm(a: Tree) -> float:
    """The Euclidean norm over all entries.

    >>> norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    5.0
    """
    parts = [a.buffer] if isinstance(a, Flat) else a.values()
    return math.hypot(*(_length(x.detach().reshape(-1)) for x in parts))


def _length(x: Tensor) -> float:
    x = x if x.is_floating_point() else x.double()
    squared = float(torch.dot(x, x)) if x.dtype in (torch.float32, torch.float64) else 0.0
    if 1e-30 < squared < math.inf:
        return math.sqrt(squared)
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))  # ten times slower, but nothing over- or underflows


def finite(a: Tree) -> bool:
    """No entry is NaN or infinite."""
    parts = [a.buffer] if isinstance(a, Flat) else list(a.values())
    # A sum is one fast pass; only when it is not finite (it may have overflowed) is every entry looked at.
    return all(not x.is_floating_point() or math.isfinite(float(x.sum())) or bool(x.isfinite().all()) for x in parts)


def size_bytes(a: Tree) -> int:
    """Bytes of all entries, without names."""
    if isinstance(a, Flat):
        return a.buffer.numel() * a.buffer.element_size()
    return sum(x.numel() * x.element_size() for x in a.values())


def take(a: Tree, prefix: str) -> Tree:
    """The entries under a prefix, without it.

    >>> sorted(take({"c/w": torch.zeros(1), "w": torch.zeros(1)}, "c/"))
    ['w']
    """
    return {name.removeprefix(prefix): x for name, x in a.items() if name.startswith(prefix)}


def drop(a: Tree, prefix: str) -> Tree:
    """The entries that are not under a prefix; the tree itself where none is."""
    if any(name.startswith(prefix) for name in a):
        return {name: x for name, x in a.items() if not name.startswith(prefix)}
    return a


def put(a: Tree, prefix: str) -> Tree:
    """The same entries under a prefix."""
    return {prefix + name: x for name, x in a.items()}
