"""The tensor table: names, dtypes and shapes as a few bytes, read back under limits before a byte of any tensor is.

Names are front-coded, each by how many bytes it begins like the one before and what follows: the layers of a network, and the
tensors of a codec, such as `ecsq/1=step` and `ecsq/1=words`, spell what they share once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from atoll import tree
from atoll.errors import FrameError
from atoll.types import Tree
from atoll.wire.octets import MOST_TEXT_BYTES, Octets, number, said, utf8

MOST_TENSORS = 100_000
MOST_TABLE_BYTES = 1 << 24
MOST_AXES = 16
_PLAIN, _ZSTD = 0, 1
_DTYPE_BITS = 5  # of a number that tells dtype and axes: up to three axes, it is one byte
_WORTH_PACKING_BYTES = 96  # below, zstd costs more time than it saves bytes
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


@dataclass(frozen=True)
class Table:
    """Tensors in the order in which they lie in a payload. What follows from it is computed once."""

    entries: tuple[Entry, ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.entries)

    @functools.cached_property
    def numbers(self) -> int:
        """Entries of all tensors together."""
        return sum(math.prod(entry.shape) for entry in self.entries)

    @functools.cached_property
    def size_bytes(self) -> int:
        """Of the numbers of all tensors, without the gaps between them."""
        return sum(entry.size_bytes for entry in self.entries)

    @functools.cached_property
    def places(self) -> tuple[tuple[int, ...], int]:
        """Where each tensor begins in the payload, at a multiple of its dtype's size, and where the payload ends."""
        found, at = [], 0
        for entry in self.entries:
            at += -at % entry.dtype.itemsize
            found.append(at)
            at += entry.size_bytes
        return tuple(found), at

    @functools.cached_property
    def widest_bytes(self) -> int:
        """Of a number of the widest dtype; 1 where there is none."""
        return max((entry.dtype.itemsize for entry in self.entries), default=1)

    @functools.cached_property
    def codecs(self) -> tuple[str, ...]:
        """The wire ids in the names of encoded tensors, `topk/1=values`, in the order of first appearance."""
        names = (entry.name.rpartition("~")[2].partition("=") for entry in self.entries)
        return tuple(dict.fromkeys(codec for codec, sign, _ in names if sign and "/" in codec))

    @functools.cached_property
    def written(self) -> bytes:
        """As `write` gives it."""
        if len(self.entries) > MOST_TENSORS:
            raise FrameError(f"a tree of {len(self.entries)} tensors can't be sent: {MOST_TENSORS} is the limit")
        names = [utf8(entry.name) for entry in self.entries]
        if (spelled := sum(map(len, names))) > MOST_TABLE_BYTES:
            raise FrameError(f"names of {spelled} bytes can't be sent: {MOST_TABLE_BYTES} is the limit; use shorter names")
        plain = number(len(names)) + b"".join(
            name + _kind(entry) for name, entry in zip(_fronts(names), self.entries, strict=True)
        )
        if len(plain) > MOST_TABLE_BYTES:
            raise FrameError(f"a table of {len(plain)} bytes can't be sent: {MOST_TABLE_BYTES} is the limit; use shorter names")
        small = plain
        if len(plain) >= _WORTH_PACKING_BYTES:
            import zstandard  # here, as a first round of a small model need not wait for it

            small = zstandard.ZstdCompressor(level=9, write_checksum=False).compress(plain)
        return bytes([_ZSTD]) + small if len(small) < len(plain) else bytes([_PLAIN]) + plain


def table_of(values: Tree) -> Table:
    """The table of a tree.

    >>> table_of({"w": torch.zeros(2, 3)}).size_bytes
    24
    """
    if isinstance(values, tree.Flat):
        return _of_layout(values.layout, values.buffer.dtype)
    return _one(tuple(Entry(name, x.dtype, tuple(x.shape)) for name, x in values.items()))


_LAYOUTS: dict[tuple[int, torch.dtype], tuple[tree.Layout, Table]] = {}  # by identity: to hash a layout takes 100 ns a tensor


def _of_layout(layout: tree.Layout, dtype: torch.dtype) -> Table:
    known = _LAYOUTS.get((id(layout), dtype))
    if known is None or known[0] is not layout:
        if len(_LAYOUTS) >= 64:
            _LAYOUTS.clear()
        table = _one(tuple(Entry(name, dtype, tuple(shape)) for name, shape in zip(*layout, strict=True)))
        known = _LAYOUTS[id(layout), dtype] = layout, table  # the layout is held, so that its id stays its own
    return known[1]


@functools.lru_cache(maxsize=64)
def _one(entries: tuple[Entry, ...]) -> Table:
    """The same table for the same entries, with what it has computed."""
    return Table(entries)


def write(table: Table) -> bytes:
    """The table as bytes, compressed where that is shorter.

    Raises:
        FrameError: a dtype that no frame carries, a name, a number of tensors or of bytes above the limits.

    >>> len(write(table_of({"w": torch.zeros(2, 3)})))
    8
    """
    return table.written


def read(data: bytes | memoryview) -> Table:
    """The table that `write` made.

    Raises:
        FrameError: cut short, of unknown dtypes, of doubled names, or above the limits.
    """
    octets = Octets(data)
    form = octets.byte()
    if form == _ZSTD:
        octets = Octets(_plain(octets.take(octets.left)))
    elif form != _PLAIN:
        raise FrameError(f"a tensor table begins with {form}, which is no form of one; it is damaged or of a newer Atoll")
    found: dict[str, Entry] = {}
    before, room = b"", MOST_TABLE_BYTES
    for _ in range(octets.number(MOST_TENSORS)):
        before = _read_name(octets, before)
        room -= len(before)
        if room < 0:  # at once: three bytes may spell four thousand
            raise FrameError(f"a tensor table's names take more than {MOST_TABLE_BYTES} bytes; it is damaged or hostile")
        entry = _read_entry(said(before), octets)
        if entry.name in found:  # at once: ten bytes unpack to a million equal entries
            raise FrameError(f"a tensor table names {entry.name[:64]!r} twice; it is damaged or hostile")
        found[entry.name] = entry
    octets.end()
    return Table(tuple(found.values()))


def _fronts(names: Iterable[bytes]) -> Iterator[bytes]:
    """Each name as two numbers and the rest of it: how much it shares with the one before, and how long the rest is."""
    before = b""
    for name in names:
        shared = next((i for i, (a, b) in enumerate(zip(before, name, strict=False)) if a != b), min(len(before), len(name)))
        yield number(shared) + number(len(name) - shared) + name[shared:]
        before = name


def _read_name(octets: Octets, before: bytes) -> bytes:
    shared = octets.number(MOST_TEXT_BYTES)
    if shared > len(before):
        raise FrameError(f"a tensor's name begins with {shared} bytes of one of {len(before)}; its table is damaged or hostile")
    return before[:shared] + octets.octets(MOST_TEXT_BYTES - shared)


def _kind(entry: Entry) -> bytes:
    """Dtype and number of axes as one number, and the axes."""
    if entry.dtype not in _CODES:
        raise FrameError(f"{entry.name} is a tensor of {entry.dtype}, which no frame carries; send it in a plain dtype")
    if len(entry.shape) > MOST_AXES:
        raise FrameError(f"{entry.name} is a tensor of {len(entry.shape)} axes; a frame carries {MOST_AXES} at most")
    kind = len(entry.shape) << _DTYPE_BITS | _CODES[entry.dtype]
    return b"".join(map(number, (kind, *entry.shape)))


def _read_entry(name: str, octets: Octets) -> Entry:
    kind = octets.number()
    axes, code = kind >> _DTYPE_BITS, kind % (1 << _DTYPE_BITS)
    if code >= len(_DTYPES) or axes > MOST_AXES:
        raise FrameError(f"a frame gives {name[:64]!r} the dtype {code} and {axes} axes; it is damaged or of a newer Atoll")
    entry = Entry(name, _DTYPES[code], tuple(octets.number() for _ in range(axes)))
    if math.prod([length or 1 for length in entry.shape]) >= 2**60:  # nor may zeros hide what torch can't count
        raise FrameError(f"a frame says that {name[:64]!r} has the shape {entry.shape}, which nothing holds; it is hostile")
    return entry


def _plain(packed: bytes) -> bytes:
    import zstandard

    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= MOST_TABLE_BYTES:
            raise FrameError(f"a tensor table says that it unpacks to {size} bytes; {MOST_TABLE_BYTES} is the limit")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(f"a tensor table does not unpack ({error}); it is damaged") from None
