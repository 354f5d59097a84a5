"""Frames: assignments, updates and failures as bytes, in one versioned format, checked before anything is allocated.

    magic "ATLL" | version | kind | head's length | head | zeros | payload | CRC-32 of all before

The head is fields in the order in which `_fields` writes them, then the tensor table (`wire.table`); the payload is the tensors
in the table's order. Each begins at a multiple of its dtype's size, the payload at a multiple of the widest's, which `kind`
tells. Integers are little-endian. A CRC finds accidents; who may speak at all, and that nobody changed a byte, is the business
of the TLS beneath.
"""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from atoll import tree
from atoll.errors import FrameError
from atoll.types import Assignment, ClientId, Failure, Tree, Update
from atoll.wire import table as tables
from atoll.wire.octets import Octets, number, real, text
from atoll.wire.table import Table, table_of

VERSION = 1
MOST_HEAD_BYTES = 1 << 25
MOST_METRICS = 4096
BASE_BYTES = 16  # of the SHA-256 of what both ends hold beforehand
NO_BASE = b""
_START = struct.Struct("<4sBBI")
_CHECK = struct.Struct("<I")
START_BYTES, CHECK_BYTES = _START.size, _CHECK.size
_MAGIC = b"ATLL"
_ASSIGNMENT, _UPDATE, _FAILURE = _KINDS = range(3)
_EMPTY = Table(())
if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("frames carry tensors as little-endian memory; this machine is big-endian, which Atoll does not run on")
with warnings.catch_warnings():  # torch warns, once a process, that nobody should write to what was received; nobody does
    warnings.simplefilter("ignore")
    torch.frombuffer(b"once", dtype=torch.uint8)


class Size(NamedTuple):
    """Bytes of a frame."""

    payload: int  # the tensors
    header: int  # all else: fields, table, padding, checksum

    @property
    def total(self) -> int:
        """What goes through a socket."""
        return self.payload + self.header


class Framed(NamedTuple):
    """What a frame held."""

    value: Assignment | Update | Failure
    codecs: tuple[str, ...]  # the wire ids of the transforms that encoded its tree, as its tensors' names tell them
    base: bytes  # empty: none


def write(value: Assignment | Update | Failure, base: bytes = NO_BASE) -> Iterator[memoryview]:
    """The frame in pieces, the tensors not copied: for `socket.sendmsg`, a file, or `b"".join`.

    `base`: the first 16 bytes of a SHA-256 of what the tree is to be understood against, such as the frozen model; or none.

    Raises:
        FrameError: a tensor that is not dense, or of a dtype that no frame carries; limits of names and numbers.

    >>> sent = Update(0, ClientId("north"), "train", {"w": torch.ones(2)}, 8.0, {"loss": 0.5})
    >>> read(b"".join(write(sent))).value.tree["w"].tolist()
    [1.0, 1.0]
    """
    check = 0
    for piece in pieces(value, base):
        check = zlib.crc32(piece, check)
        yield piece
    yield memoryview(_CHECK.pack(check))


def pieces(value: Assignment | Update | Failure, base: bytes = NO_BASE) -> Iterator[memoryview]:
    """What `write` gives, its front first, without the checksum: for those who keep it under a digest of their own."""
    yield memoryview(_front(value, base))
    yield from _payload({} if isinstance(value, Failure) else value.tree)


def size(value: Assignment | Update | Failure, base: bytes = NO_BASE) -> Size:
    """The size of the frame that `write` would give, without writing it.

    >>> sent = Assignment(0, ClientId("north"), "train", {"w": torch.ones(2)}, 7)
    >>> size(sent).total == len(b"".join(write(sent)))
    True
    """
    table = _table(value)
    front = _start_of(value, base, table, len(_fields(value, base)) + len(tables.write(table))).front_bytes
    gaps = table.places[1] - table.size_bytes
    return Size(table.size_bytes, front + gaps + CHECK_BYTES)


def read(data: bytes | bytearray | memoryview, like: Tree | None = None, most_bytes: int = sys.maxsize) -> Framed:
    """What was written. Its tensors are views of `data`; a frame with a wrong byte anywhere is refused.

    `like`: names, dtypes and shapes that the tree must have. `most_bytes`: the largest payload that is taken.

    Raises:
        FrameError: not a frame, of a newer version, cut short, damaged, larger than allowed, or not like `like`.
    """
    view = memoryview(data).cast("B")
    front = read_front(view)
    front.check(like, most_bytes)
    begins, ends = front.size_bytes, front.size_bytes + front.payload_bytes
    if len(view) != ends + CHECK_BYTES:
        raise FrameError(f"a frame of {len(view)} bytes should have {ends + CHECK_BYTES}; it was cut short or run together")
    if _CHECK.unpack(view[ends:])[0] != zlib.crc32(view[:ends]):
        raise FrameError("a frame's checksum is not that of its bytes; it was damaged on the way, send it again")
    return Framed(front.filled(view[begins:ends]), front.table.codecs, front.base)


class Start(NamedTuple):
    """A frame's first bytes, of those a magic and a version that are known."""

    kind: int
    based: bool  # a base is told
    widest_bytes: int  # of a number of the widest dtype
    head_bytes: int

    @property
    def front_bytes(self) -> int:
        """What comes before the payload: this, the head, and zeros up to a multiple of the widest dtype's size."""
        front = START_BYTES + self.head_bytes
        return front + -front % self.widest_bytes

    def packed(self) -> bytes:
        """`kind` is two bits, the third whether there is a base, two more the logarithm of the widest dtype's size."""
        told = self.kind | self.based << 2 | (self.widest_bytes.bit_length() - 1) << 3
        return _START.pack(_MAGIC, VERSION, told, self.head_bytes)


class Front(NamedTuple):
    """A frame up to its payload."""

    value: Assignment | Update | Failure  # without its tree
    base: bytes
    table: Table
    size_bytes: int

    @property
    def payload_bytes(self) -> int:
        """Of the tensors and the gaps between them."""
        return self.table.places[1]

    def check(self, like: Tree | None, most_bytes: int) -> None:
        """Raise FrameError where the tensors that are announced are not those of `like`, or are more than `most_bytes`."""
        if self.payload_bytes > most_bytes:
            raise FrameError(f"a frame announces {self.payload_bytes} bytes of tensors; {most_bytes} are allowed here")
        if like is not None and table_of(like) != self.table:
            wanted, found = ({entry.name: entry for entry in each.entries} for each in (table_of(like), self.table))
            odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            told = (
                f"{odd[0]!r} is {_told(found.get(odd[0]))}, and should be {_told(wanted.get(odd[0]))}" if odd else "their order"
            )
            raise FrameError(f"a frame's tensors are not those of this job: {told}; both ends need the same job file")

    def filled(self, payload: memoryview) -> Assignment | Update | Failure:
        """The value, its tensors views of the payload."""
        return self.value if isinstance(self.value, Failure) else self.value._replace(tree=_tree(self.table, payload))


def front_bytes(start: bytes | bytearray | memoryview) -> int:
    """How many bytes come before the payload, by the first `START_BYTES`: so much may be read from a socket.

    Raises:
        FrameError: not a frame, of another version, or longer than a frame's front may be.

    >>> front_bytes(b"".join(write(Failure(0, ClientId("north"), "train", "no_data", "")))[:START_BYTES])
    34
    """
    return _read_start(start).front_bytes


def read_front(data: bytes | bytearray | memoryview) -> Front:
    """A frame's front, from as many of its bytes as there are.

    Raises:
        FrameError: not a frame, of another version, or cut short before its payload.
    """
    view = memoryview(data).cast("B")
    start = _read_start(view)
    if start.front_bytes > len(view):
        raise FrameError(f"a frame's front of {start.front_bytes} bytes is more than the {len(view)} that came; it was cut short")
    octets = Octets(view[START_BYTES : START_BYTES + start.head_bytes])
    value = _value(start.kind, octets)
    base = octets.take(BASE_BYTES) if start.based else NO_BASE
    found = tables.read(octets.take(octets.left))
    if found.widest_bytes != start.widest_bytes:
        told = f"a frame tells numbers of {start.widest_bytes} bytes, its tensors have {found.widest_bytes}"
        raise FrameError(f"{told}; it is damaged or hostile")
    return Front(value, base, found, start.front_bytes)


def _read_start(data: bytes | bytearray | memoryview) -> Start:
    """What `Start.packed` packed, before anything else of a frame is looked at."""
    if len(data) < START_BYTES or bytes(data[:4]) != _MAGIC:
        raise FrameError("these bytes are no frame: they do not begin with ATLL; something else speaks to this port")
    _, version, told, length = _START.unpack(data[:START_BYTES])
    if version != VERSION:
        raise FrameError(f"a frame of version {version}: this Atoll reads {VERSION}; use one release of atoll at both ends")
    if told >> 5 or told & 3 not in _KINDS:
        raise FrameError(f"a frame of the kind {told}, which this Atoll does not know; upgrade atoll here")
    if length > MOST_HEAD_BYTES:
        raise FrameError(f"a frame's head of {length} bytes is longer than the {MOST_HEAD_BYTES} allowed; it is damaged")
    return Start(told & 3, bool(told & 4), 1 << (told >> 3 & 3), int(length))


def _table(value: Assignment | Update | Failure) -> Table:
    return _EMPTY if isinstance(value, Failure) else table_of(value.tree)


def _front(value: Assignment | Update | Failure, base: bytes) -> bytes:
    table = _table(value)
    head = _fields(value, base) + tables.write(table)
    if len(head) > MOST_HEAD_BYTES:
        raise FrameError(f"a head of {len(head)} bytes can't be sent: {MOST_HEAD_BYTES} is the limit; send fewer tensors")
    start = _start_of(value, base, table, len(head))
    return (start.packed() + head).ljust(start.front_bytes, b"\0")


def _start_of(value: Assignment | Update | Failure, base: bytes, table: Table, head_bytes: int) -> Start:
    kind = _UPDATE if isinstance(value, Update) else _FAILURE if isinstance(value, Failure) else _ASSIGNMENT
    return Start(kind, bool(base), table.widest_bytes, head_bytes)


def _fields(value: Assignment | Update | Failure, base: bytes) -> bytes:
    if len(base) not in (0, BASE_BYTES):
        raise FrameError(f"a base hash of {len(base)} bytes: a frame carries none or the first {BASE_BYTES} of a SHA-256")
    fields = number(value.round) + text(value.client) + text(value.work)
    if isinstance(value, Update):
        if len(value.metrics) > MOST_METRICS:
            raise FrameError(f"an update with {len(value.metrics)} metrics can't be sent: {MOST_METRICS} is the limit")
        metrics = b"".join(text(name) + real(x) for name, x in value.metrics.items())
        fields += real(value.weight) + number(len(value.metrics)) + metrics
    elif isinstance(value, Failure):
        fields += text(value.kind) + text(value.reason.encode()[:1024].decode(errors="ignore"))
    else:
        fields += number(value.seed)
    return fields + base


def _value(kind: int, octets: Octets) -> Assignment | Update | Failure:
    round, client, work = octets.number(), ClientId(octets.text()), octets.text()
    if kind == _UPDATE:
        weight, count = octets.real(), octets.number(MOST_METRICS)
        metrics = {octets.text(): octets.real() for _ in range(count)}
        if len(metrics) < count:
            raise FrameError("a frame names a metric twice; it is damaged or hostile")
        return Update(round, client, work, {}, weight, metrics)
    if kind == _FAILURE:
        return Failure(round, client, work, octets.text(), octets.text())
    return Assignment(round, client, work, {}, octets.number())


def _told(entry: tables.Entry | None) -> str:
    return "not there" if entry is None else f"{str(entry.dtype).removeprefix('torch.')} {entry.shape}"


def _payload(values: Tree) -> Iterator[memoryview]:
    if isinstance(values, tree.Flat):
        yield _memory("the tree", values.buffer)
        return
    at = 0
    for (name, x), begins in zip(values.items(), table_of(values).places[0], strict=True):
        if begins > at:
            yield memoryview(bytes(begins - at))
        yield _memory(name, x)
        at = begins + x.numel() * x.element_size()


def _memory(name: str, x: Tensor) -> memoryview:
    if x.layout != torch.strided or x.device.type == "meta":
        raise FrameError(f"{name} is a tensor of {x.layout} on {x.device}, which no frame carries; make it dense")
    plain = x.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")


def _tree(table: Table, payload: memoryview) -> Tree:
    if not len(payload):
        return {entry.name: torch.empty(entry.shape, dtype=entry.dtype) for entry in table.entries}
    data = torch.frombuffer(payload, dtype=torch.uint8)
    spans = [(entry, data[at : at + entry.size_bytes]) for entry, at in zip(table.entries, table.places[0], strict=True)]
    dtypes = {entry.dtype for entry in table.entries}
    if torch.bool in dtypes and any(e.dtype == torch.bool and bool((span > 1).any()) for e, span in spans):
        raise FrameError("a frame holds a truth value that is neither 0 nor 1; it is damaged or hostile")
    if len(dtypes) == 1:
        layout = tree.Layout(tuple(e.name for e in table.entries), tuple(torch.Size(e.shape) for e in table.entries))
        return tree.Flat(layout, data.view(dtypes.pop()))
    return {entry.name: span.view(entry.dtype).view(entry.shape) for entry, span in spans}
