"""Chunks to and from the bytes of the protocol's `Chunk`, with one copy of a megabyte less at each end than its class makes."""

from __future__ import annotations

from typing import NamedTuple

from atoll.remote import protocol_pb2 as pb
from atoll.wire.octets import number

_DATA, _MARK = b"\x0a", b"\x2d"  # field 1, of a length; field 5, of four bytes


class Chunk(NamedTuple):
    """Bytes of a blob, and of the first one of an answer what they are."""

    data: bytes | memoryview
    mark: int  # of the blob up to the end of `data`, see `marks`
    parcel: pb.Parcel | None = None
    offset: int = 0


def pack(chunk: Chunk | bytes) -> bytes:
    """As `Chunk.SerializeToString` of the protocol's class would; what was packed before stays as it is.

    >>> pack(Chunk(b"abc", 7)) == pb.Chunk(data=b"abc", mark=7).SerializeToString()
    True
    """
    if isinstance(chunk, bytes):
        return chunk
    named = pb.Chunk(parcel=chunk.parcel, offset=chunk.offset).SerializeToString() if chunk.parcel is not None else b""
    return b"".join((_DATA, number(len(chunk.data)), chunk.data, named, _MARK, chunk.mark.to_bytes(4, "little")))


def unpack(data: bytes) -> Chunk:
    """What `pack`, or any protobuf of another language, has written. ValueError where it is no such message.

    >>> bytes(unpack(pack(Chunk(b"abc", 7))).data)
    b'abc'
    """
    if data[:1] != _DATA:
        rest = pb.Chunk.FromString(data)
        return Chunk(rest.data, rest.mark, rest.parcel, rest.offset)
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
    return Chunk(memoryview(data)[at + 1 : ends], rest.mark, rest.parcel, rest.offset)
