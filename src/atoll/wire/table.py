"""The tensor table: names, dtypes and shapes as a few bytes, read back under limits before a byte of any tensor is."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import zstandard

from atoll import tree
from atoll.errors import FrameError
from atoll.types import Tree
from atoll.wire.octets import Octets, number, text

MOST_TENSORS = 100_000
MOST_TABLE_BYTES = 1 << 24
MOST_AXES = 16
_PLAIN, _ZSTD = 0, 1
_DTYPES = (  # a dtype's place is its code and never changes; new ones are added at the end
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


class Entry(NamedTuple):
    """One tensor without its numbers."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class Table(NamedTuple):
    """Tensors in the order in which they lie in a payload."""

    entries: tuple[Entry, ...]

    @property
    def numbers(self) -> int:
        """Entries of all tensors together."""
        return sum(math.prod(entry.shape) for entry in self.entries)


def table_of(values: Tree) -> Table:
    """The table of a tree.

    >>> table_of({"w": torch.zeros(2, 3)}).entries[0].size_bytes
    24
    """
    if isinstance(values, tree.Flat):
        return _of_layout(values.layout, values.buffer.dtype)
    return Table(tuple(Entry(name, x.dtype, tuple(x.shape)) for name, x in values.items()))


@functools.lru_cache(maxsize=256)
def _of_layout(layout: tree.Layout, dtype: torch.dtype) -> Table:
    return Table(tuple(Entry(name, dtype, tuple(shape)) for name, shape in zip(*layout, strict=True)))


@functools.lru_cache(maxsize=1024)
def write(table: Table) -> bytes:
    """The table as bytes, compressed where that is shorter.

    Raises:
        FrameError: a dtype that no frame carries, a name or a number of tensors above the limits.

    >>> len(write(table_of({"w": torch.zeros(2, 3)})))
    8
    """
    if len(table.entries) > MOST_TENSORS:
        raise FrameError(f"a tree of {len(table.entries)} tensors can't be sent: {MOST_TENSORS} is the limit")
    plain = number(len(table.entries)) + b"".join(_entry(entry) for entry in table.entries)
    small = zstandard.ZstdCompressor(level=9, write_checksum=False).compress(plain)
    return bytes([_ZSTD]) + small if len(small) < len(plain) else bytes([_PLAIN]) + plain


def read(data: bytes | memoryview) -> Table:
    """The table that `write` made.

    Raises:
        FrameError: cut short, of unknown dtypes, of doubled names, or above the limits.
    """
    octets = Octets(data)
    form = octets.take(1)[0]
    if form == _ZSTD:
        octets = Octets(_plain(bytes(octets.take(octets.left))))
    elif form != _PLAIN:
        raise FrameError(f"a tensor table begins with {form}, which is no form of one; it is damaged or of a newer Atoll")
    table = Table(tuple(_read_entry(octets) for _ in range(octets.number(MOST_TENSORS))))
    octets.end()
    if len({entry.name for entry in table.entries}) < len(table.entries):
        raise FrameError("a tensor table names a tensor twice; it is damaged or hostile")
    return table


def _entry(entry: Entry) -> bytes:
    if entry.dtype not in _CODES:
        raise FrameError(f"{entry.name} is a tensor of {entry.dtype}, which no frame carries; send it in a plain dtype")
    if len(entry.shape) > MOST_AXES:
        raise FrameError(f"{entry.name} is a tensor of {len(entry.shape)} axes; a frame carries {MOST_AXES} at most")
    return text(entry.name) + bytes([_CODES[entry.dtype], len(entry.shape)]) + b"".join(map(number, entry.shape))


def _read_entry(octets: Octets) -> Entry:
    name, code, axes = octets.text(), octets.take(1)[0], octets.take(1)[0]
    if code >= len(_DTYPES) or axes > MOST_AXES:
        raise FrameError(f"a frame gives {name!r} the dtype {code} and {axes} axes; it is damaged or of a newer Atoll")
    entry = Entry(name, _DTYPES[code], tuple(octets.number() for _ in range(axes)))
    if math.prod(max(length, 1) for length in entry.shape) >= 2**60:
        raise FrameError(f"a frame says that {name!r} has the shape {entry.shape}, which nothing holds; it is hostile")
    return entry


def _plain(packed: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= MOST_TABLE_BYTES:
            raise FrameError(f"a tensor table says that it unpacks to {size} bytes; {MOST_TABLE_BYTES} is the limit")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise FrameError(f"a tensor table does not unpack ({error}); it is damaged") from None
