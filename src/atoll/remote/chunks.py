"""Chunks to and from the bytes of the protocol's `Chunk`, with one copy of a megabyte less at each end than its class makes."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from atoll.remote import protocol_pb2 as pb
from atoll.wire.octets import number

_DATA, _CRC = b"\x0a", b"\x15"  # field 1, of a length; field 2, of four bytes


class Chunk(NamedTuple):
    """Bytes of a blob, and of the first one of an answer what they are."""

    data: bytes | memoryview
    crc32: int
    parcel: pb.Parcel | None = None
    offset: int = 0

    @classmethod
    def of(cls, data: bytes, parcel: pb.Parcel | None = None, offset: int = 0) -> Chunk:
        """With the checksum of `data`."""
        return cls(data, zlib.crc32(data), parcel, offset)


def pack(chunk: Chunk) -> bytes:
    """As `Chunk.SerializeToString` of the protocol's class would.

    >>> pack(Chunk.of(b"abc")) == pb.Chunk(data=b"abc", crc32=zlib.crc32(b"abc")).SerializeToString()
    True
    """
    named = pb.Chunk(parcel=chunk.parcel, offset=chunk.offset).SerializeToString() if chunk.parcel is not None else b""
    return b"".join((_DATA, number(len(chunk.data)), chunk.data, _CRC, chunk.crc32.to_bytes(4, "little"), named))


def unpack(data: bytes) -> Chunk:
    """What `pack`, or any protobuf of another language, has written. ValueError where it is no such message.

    >>> bytes(unpack(pack(Chunk.of(b"abc"))).data)
    b'abc'
    """
    if data[:1] != _DATA:
        rest = pb.Chunk.FromString(data)
        return Chunk(rest.data, rest.crc32, rest.parcel, rest.offset)
    at = length = shift = 0
    for at in range(1, min(len(data), 11)):
        length |= (data[at] & 0x7F) << shift
        shift += 7
        if data[at] < 0x80:
            break
    ends = at + 1 + length
    if ends > len(data) or data[at] >= 0x80:
        raise ValueError("a chunk ends before its data does")
    rest = pb.Chunk.FromString(data[ends:])
    if rest.data:
        raise ValueError("a chunk holds its data twice")
    return Chunk(memoryview(data)[at + 1 : ends], rest.crc32, rest.parcel, rest.offset)
