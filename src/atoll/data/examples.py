"""Examples held as tensors, and the order in which a client's fold reads them in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError, DataError
from atoll.types import Batch, Batching, Examples

_AHEAD_BYTES = 1 << 20  # gathered in one call: several small batches share its cost, a large client does not fill memory


class Tensors:
    """Examples as named tensors with the examples on the first axis, or some of their rows.

    A client's share of a data set is an index into tensors that all clients share: nothing is copied. Rows that follow
    each other are a range, which is 48 bytes however many they are; of others each costs the 8 bytes of its number.

    >>> whole = Tensors({"x": torch.eye(4), "y": torch.arange(4)})
    >>> share = whole.subset(torch.tensor([3, 1]))
    >>> len(share), share.take(torch.tensor([0]))["y"].tolist()
    (2, [3])
    """

    __slots__ = ("columns", "index")

    def __init__(self, columns: Mapping[str, Tensor], index: Tensor | range | None = None) -> None:
        """Columns of one length, and the rows that count: int64 (n,), or a range of step 1; None: all of them.

        Raises:
            DataError: there is no column, or two differ in length.
        """
        lengths = {name: len(column) if column.dim() else -1 for name, column in columns.items()}
        if len(set(lengths.values())) != 1 or -1 in lengths.values():
            raise DataError(f"examples need one or more columns of one length, got {lengths}; -1 is a column without an axis.")
        self.columns = columns
        self.index = index

    def _rows(self, index: Tensor | range) -> Tensors:
        """Other rows of the same columns, which are known to fit each other."""
        made = Tensors.__new__(Tensors)
        made.columns, made.index = self.columns, index
        return made

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())) if self.index is None else self.index)

    def take(self, index: Tensor) -> Batch:
        """The examples at `index`, int64 (n,), as tensors with n on the first axis."""
        if isinstance(self.index, range):  # of the span alone, so that a row beyond its end is refused
            return {name: self._span(column).index_select(0, index) for name, column in self.columns.items()}
        rows = index if self.index is None else self.index.index_select(0, index)
        return {name: column.index_select(0, rows) for name, column in self.columns.items()}

    def subset(self, index: Tensor) -> Tensors:
        """The examples at `index`, int64 (n,), over the same tensors."""
        if isinstance(self.index, range):
            return self._rows(torch.arange(self.index.start, self.index.stop).index_select(0, index))
        return self._rows(index if self.index is None else self.index.index_select(0, index))

    def span(self, start: int, stop: int) -> Tensors:
        """The examples from `start` to before `stop`, over the same tensors; a range of a range, a slice of an index.

        >>> Tensors({"y": torch.arange(9)}).span(2, 8).span(1, 3).column("y").tolist()
        [3, 4]
        """
        if isinstance(self.index, Tensor):
            return self._rows(self.index[start:stop])
        return self._rows((range(len(self)) if self.index is None else self.index)[start:stop])

    def column(self, name: str) -> Tensor:
        """One column of all these examples; it is a copy only where they do not follow each other.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.columns:
            raise DataError(f"there is no column {name!r}; there are {', '.join(self.columns)}.")
        column = self.columns[name]
        if isinstance(self.index, range):
            return self._span(column)
        return column if self.index is None else column.index_select(0, self.index)

    def _span(self, column: Tensor) -> Tensor:
        assert isinstance(self.index, range)
        return column[self.index.start : self.index.stop]

    def mapped(self, change: Callable[[Batch], Batch]) -> Tensors:
        """The same examples with their columns changed, in tensors of their own."""
        return Tensors(change({name: self.column(name) for name in self.columns}))


def batches(examples: Examples, batching: Batching, seed: int, read: int = 0) -> Iterator[Batch]:
    """The batches that a fold reads, in an order that depends on `seed` alone.

    `epochs` passes, or exactly `steps` batches of as many passes as that takes. With `shuffle` each pass has an order of
    its own. The last batch of a pass may be short. No examples: no batches. Batches may share memory with each other.
    `read`: so many batches were read before, in this very order, and are passed over.

    Raises:
        ConfigError: batch_size, epochs or steps is below 1.

    >>> three = Tensors({"x": torch.arange(3)})
    >>> [b["x"].tolist() for b in batches(three, Batching(batch_size=2, epochs=2), seed=0)]
    [[0, 1], [2], [0, 1], [2]]
    >>> [len(b["x"]) for b in batches(three, Batching(batch_size=2, steps=3, shuffle=True), seed=0)]
    [2, 1, 2]
    """
    for name in ("batch_size", "epochs", "steps"):
        value = getattr(batching, name)
        if (value is None and name != "epochs") or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            continue
        raise ConfigError(f"{name} is {value!r}, but must be a whole number of 1 or more.")
    return _batches(examples, batching, seed, read)


def steps_of(count: int, batching: Batching) -> int:
    """How many batches `batches` makes of so many examples.

    >>> steps_of(3, Batching(batch_size=2, epochs=2)), steps_of(0, Batching(steps=5))
    (4, 0)
    """
    if not count:
        return 0
    size = count if batching.batch_size is None else min(batching.batch_size, count)
    return -(-count // size) * batching.epochs if batching.steps is None else batching.steps


def _batches(examples: Examples, batching: Batching, seed: int, read: int) -> Iterator[Batch]:
    count = len(examples)
    if count == 0:
        return
    size = count if batching.batch_size is None else min(batching.batch_size, count)
    a_pass, left = -(-count // size), steps_of(count, batching)
    ahead = _ahead(examples, size)
    if ahead >= a_pass and left > a_pass and isinstance(examples, Tensors):
        examples = examples.mapped(dict)  # a small client read more than once: its rows side by side, not strewn over the base
    generator = rng.generator(seed, "batches") if batching.shuffle else None
    while left > 0:
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        if read:  # an order costs some nanoseconds an example: to draw those of the passes before is cheaper than to keep one
            passed = min(read, a_pass)
            order, read = order[passed * size :], read - passed
            if not len(order):
                continue
        whole = ahead >= a_pass and left >= a_pass
        for index in (order,) if whole else torch.split(order[: left * size], size * ahead):
            rows = examples.take(index)
            full, rest = divmod(len(index), size)
            sizes = [size] * full + [rest] * (rest > 0)
            # "unsafe" leaves out what autograd keeps of views, and costs half: nobody differentiates by the data.
            portions = [torch.unsafe_split_with_sizes(column, sizes) for column in rows.values()]
            names = tuple(rows)
            for values in zip(*portions, strict=True):
                yield dict(zip(names, values))  # noqa: B905  # as many as there are columns; `strict` costs as much again
            left -= len(sizes)


def _ahead(examples: Examples, size: int) -> int:
    """How many batches to gather in one call."""
    if not isinstance(examples, Tensors):
        return 1  # rows of a lazy set may cost much and weigh much
    rows, size_bytes = 0, 0
    for column in examples.columns.values():
        rows, size_bytes = len(column), size_bytes + column.nbytes
    return max(1, _AHEAD_BYTES // max(1, size_bytes // rows * size))
