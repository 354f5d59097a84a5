"""Frames that somebody made to harm: refused with FrameError before anything large is allocated, whatever they announce."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
import zlib

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import FrameError
from atoll.wire import frame, table
from atoll.wire.octets import Octets, number, real, text

FIELDS = number(3) + text("north") + text("train") + real(1.0)  # of an update, without its metrics
W = b"\0" + text("w") + b"\x20"  # shares nothing with a name before it; float32, one axis: its length follows
SLOW_S = 20.0  # of a machine that others work on too; what is refused late would take hours


def framed(
    head: bytes, payload: bytes = b"", version: int = 1, kind: int = 1, length: int | None = None, widest: int = 1
) -> bytes:
    """A frame with a right checksum; `widest`: of the bytes that a number of any of its tensors has."""
    told = kind | (widest.bit_length() - 1) << 3
    front = struct.pack("<4sBBI", b"ATLL", version, told, len(head) if length is None else length) + head
    data = front + bytes(-len(front) % widest) + payload
    return data + struct.pack("<I", zlib.crc32(data))


def tabled(plain: bytes, metrics: bytes = number(0)) -> bytes:
    """The head of an update with this tensor table."""
    return FIELDS + metrics + plain


def packed(plain: bytes, write_content_size: bool = True) -> bytes:
    return b"\1" + zstandard.ZstdCompressor(level=9, write_content_size=write_content_size).compress(plain)


def lied(plain: bytes, said: int) -> bytes:
    """zstd with a wrong content size, which is one byte in a frame of less than 256."""
    made = bytearray(packed(plain))
    assert made[6] == len(plain)
    made[6] = said
    return bytes(made)


def shared(i: int) -> bytes:
    """One of many names of 4,095 bytes, in nine."""
    return number(4090) + text(f"{i:05d}") + b"\0"


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no frame"),
    "another protocol": (b"GET / HTTP/1.1\r\n\r\n", "no frame"),
    "version 0": (framed(tabled(b"\0\0"), version=0), "version 0"),
    "a newer version": (framed(tabled(b"\0\0"), version=2), "version 2"),
    "an unknown kind": (framed(tabled(b"\0\0"), kind=3), "kind 3"),
    "a kind with a bit that nobody knows": (framed(tabled(b"\0\0"), kind=33), "kind 33"),
    "a base that is not there": (framed(FIELDS + number(0), kind=5), "before a field does"),
    "a width that no tensor has": (framed(tabled(b"\0\1" + W + number(2)), bytes(8), widest=8), "numbers of 8 bytes"),
    "a width too small": (framed(tabled(b"\0\1" + W + number(2)), bytes(8)), "numbers of 1 bytes"),
    "a head of 4 GB": (framed(b"", length=2**32 - 1), "longer than the"),
    "a head longer than the data": (framed(b"", length=1000), "cut short"),
    "a number without an end": (framed(b"\xff" * 100), "above|63 bits"),
    "a number of zeros without an end": (framed(b"\x80" * 100), "63 bits"),
    "a text of 2^60 bytes": (framed(number(0) + number(2**60)), "above 4096"),
    "a text that is not UTF-8": (framed(number(0) + b"\2\xff\xfe"), "UTF-8"),
    "2^60 metrics": (framed(FIELDS + number(2**60)), "above 4096"),
    "metrics that are not there": (framed(FIELDS + number(4096)), "before a field does"),
    "a metric twice": (framed(tabled(b"\0\0", metrics=number(2) + 2 * (text("a") + real(0)))), "a metric twice"),
    "a weight of another form": (framed(number(3) + text("north") + text("train") + b"\5" + bytes(20)), "of the form 5"),
    "half a weight": (framed(number(3) + text("north") + text("train") + b"\1" + bytes(7)), "before a field does"),
    "no table": (framed(FIELDS + number(0)), "before a field does"),
    "a table of another form": (framed(tabled(b"\7")), "no form of one"),
    "2^60 tensors": (framed(tabled(b"\0" + number(2**60))), "above 100000"),
    "tensors that are not there": (framed(tabled(b"\0" + number(100_000))), "before a field does"),
    "a tensor twice": (framed(tabled(b"\0" + number(2) + 2 * (W + number(1))), bytes(8)), "'w' twice"),
    "a name out of nothing": (framed(tabled(b"\0\1\1" + text("w") + b"\x20\1")), "begins with 1 bytes of one of 0"),
    "a name of 5000 bytes": (
        framed(tabled(b"\0\2\0" + text("w" * 4000) + b"\0" + number(4000) + text("w" * 1000) + b"\0")),
        "above 96",
    ),
    "an unknown dtype": (framed(tabled(b"\0\1\0" + text("w") + b"\x0f")), "dtype 15"),
    "255 axes": (framed(tabled(b"\0\1\0" + text("w") + number(255 << 5) + number(1) * 255)), "255 axes"),
    "2^58 axes": (framed(tabled(b"\0\1\0" + text("w") + number(2**63))), "288230376151711744 axes"),
    "a shape beyond all memory": (framed(tabled(b"\0\1" + W + number(2**62))), "nothing holds"),
    "a product beyond all memory": (framed(tabled(b"\0\1\0" + text("w") + b"\x60" + 3 * number(2**21))), "nothing holds"),
    "zeros that hide it": (framed(tabled(b"\0\1\0" + text("w") + b"\x60" + number(0) + 2 * number(2**40))), "nothing holds"),
    "a terabyte that is not there": (framed(tabled(b"\0\1" + W + number(2**38)), widest=4), "cut short"),
    "a byte less than announced": (framed(tabled(b"\0\1" + W + number(2)), bytes(7), widest=4), "cut short"),
    "a byte more than announced": (framed(tabled(b"\0\1" + W + number(2)), bytes(9), widest=4), "run together"),
    "bytes after the table": (framed(tabled(b"\0\0\0")), "more than its fields"),
    "a truth value of 2": (framed(tabled(b"\0\1\0" + text("w") + b"\x2b" + number(1)), b"\2"), "neither 0 nor 1"),
    "a bomb of 64 MB": (framed(tabled(packed(bytes(1 << 26)))), "unpacks to 67108864"),
    "a bomb at the limit": (framed(tabled(packed(bytes(1 << 24)))), "more than its fields"),
    "a bomb of one name": (framed(tabled(packed(number(100_000) + 100_000 * (W + number(1))))), "'w' twice"),
    "a bomb of names that share": (
        framed(tabled(packed(number(100_000) + b"\0" + text("w" * 4090) + b"\0" + b"".join(map(shared, range(99_999)))))),
        "names take more than",
    ),
    "a bomb of unknown size": (framed(tabled(packed(bytes(1 << 26), write_content_size=False))), "unpacks to -1"),
    "a bomb that says it is small": (framed(tabled(lied(bytes(200), 100))), "does not unpack|more than"),
    "a table that says it is larger": (framed(tabled(lied(bytes(100), 200))), "does not unpack"),
    "bytes after the packed table": (framed(tabled(packed(bytes(100)) + b"more")), "does not unpack"),
    "a packed table that is noise": (framed(tabled(b"\1" + bytes(range(50)))), "does not unpack"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_before_it_costs_anything(name: str) -> None:
    data, why = HOSTILE[name]
    began = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match=why):
            frame.read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    allowed = 4 * table.MOST_TABLE_BYTES if "bomb" in name else 1 << 18
    assert peak < allowed, f"{peak} bytes were allocated"
    assert time.perf_counter() - began < SLOW_S


def test_what_it_is_tried_against_is_a_frame() -> None:
    """The frames above are refused for what is wrong in them, and not for how they are made here."""
    found = frame.read(
        framed(tabled(b"\0\1" + W + number(2), metrics=number(1) + text("a") + real(2.0)), struct.pack("<2f", 1, 2), widest=4)
    )
    assert getattr(found.value, "tree", {})["w"].tolist() == [1.0, 2.0]
    frame.read(framed(tabled(packed(number(1) + b"\0" + text("w" * 200) + b"\0")), bytes(4), widest=4))
    frame.read(framed(tabled(b"\0\1\0" + text("w") + b"\x2b" + number(1)), b"\1"))


def test_a_front_is_enough_to_refuse_a_payload_that_is_not_read_yet() -> None:
    data = framed(tabled(b"\0\1" + W + number(2**38)), widest=4)
    front = frame.read_front(data[: frame.front_bytes(data[: frame.START_BYTES])])
    assert front.payload_bytes == 2**40
    with pytest.raises(FrameError, match="are allowed here"):
        front.check(None, 1 << 30)


@settings(max_examples=300)
@given(data=st.binary(max_size=300))
def test_noise_is_never_more_than_a_wrong_frame(data: bytes) -> None:
    with pytest.raises(FrameError):
        frame.read(data)
    for wrong in (
        framed(data),
        framed(tabled(data)),
        framed(tabled(b"\0" + data)),
        framed(tabled(b"\1" + data)),
        framed(data, kind=0),
    ):
        with contextlib.suppress(FrameError):
            frame.read(wrong)


@settings(max_examples=300)
@given(data=st.data())
def test_a_right_head_with_wrong_bytes_in_it_is_a_frame_or_refused(data: st.DataObject) -> None:
    """As one who computes the checksum anew would send it; what is read has the size that it announces."""
    head = bytearray(tabled(b"\0\2" + W + number(2) + b"\0" + text("n") + b"\x4a" + number(3) + number(1)))
    for _ in range(data.draw(st.integers(1, 3))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = frame.read(framed(bytes(head), bytes(32), widest=8))
    except FrameError:
        return
    held = getattr(found.value, "tree", {})
    assert sum(x.numel() * x.element_size() for x in held.values()) <= 32
    assert all(isinstance(x, torch.Tensor) for x in held.values())


@given(x=st.integers(0, 2**63))
def test_numbers_come_back(x: int) -> None:
    octets = Octets(number(x) + b"!")
    assert octets.number() == x
    assert octets.left == 1
    assert len(number(x)) == max(1, -(-x.bit_length() // 7))
