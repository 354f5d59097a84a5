"""Numbers and texts as bytes, and back under limits: what a frame's head is written with."""

from __future__ import annotations

import functools
import math
import struct

from atoll.errors import FrameError

MOST_TEXT_BYTES = 4096
MOST = 2**63
_MOST_SHIFT = 63
_DOUBLE = struct.Struct("<d")
_AS_IT_IS = 1  # odd: even numbers are twice the value
_MOST_WHOLE = 2**53  # beyond, a float64 skips integers


def number(x: int) -> bytes:
    """A non-negative integer in 7-bit groups, the least significant first (LEB128).

    >>> number(300).hex()
    'ac02'
    """
    if not 0 <= x <= MOST:
        raise FrameError(f"{x} can't be written in a frame: numbers there are from 0 to 2^63")
    if x <= 0x7F:
        return bytes((x,))
    found = bytearray()
    while x > 0x7F:
        found.append(x & 0x7F | 0x80)
        x >>= 7
    found.append(x)
    return bytes(found)


def utf8(x: str) -> bytes:
    """A text without its length, which is checked.

    >>> utf8("é").hex()
    'c3a9'
    """
    try:
        data = x.encode()
    except UnicodeEncodeError:
        raise FrameError(f"{x[:64]!r} can't be written in a frame: it holds half of a character") from None
    if len(data) > MOST_TEXT_BYTES:
        raise FrameError(f"a text of {len(data)} bytes can't be written in a frame: {MOST_TEXT_BYTES} is the limit")
    return data


@functools.lru_cache(maxsize=1024)  # the names of works, metrics and clients come again each round
def text(x: str) -> bytes:
    """A text in UTF-8, after its length in bytes."""
    data = utf8(x)
    return number(len(data)) + data


def said(data: bytes) -> str:
    """The text that `utf8` made bytes of."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FrameError("a frame holds a text that is not UTF-8; it is damaged or hostile") from None


def real(x: float) -> bytes:
    """A float64: where it is a count, an integer from 0 to 2^53, as a number, twice itself; else after a 1, as it is.

    A float32 would do for some of the others. But then a frame's size would depend on what a clock has measured, and two
    runs of one seed would differ in their bytes.

    >>> real(200.0).hex(), real(0.5).hex()
    ('9003', '01000000000000e03f')
    """
    x = float(x)
    if 0 <= x <= _MOST_WHOLE and x.is_integer() and math.copysign(1, x) > 0:
        return number(2 * int(x))
    return bytes((_AS_IT_IS,)) + _DOUBLE.pack(x)


class Octets:
    """Reads what the functions above wrote, in their order; never beyond the end, and nothing longer than its limit.

    >>> octets = Octets(number(300) + text("w") + real(0.1))
    >>> octets.number(), octets.text(), octets.real(), octets.left
    (300, 'w', 0.1, 0)
    """

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data, self._at = bytes(data), 0  # at most a head: bytes are read several times faster than a view

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next bytes as they are."""
        if count > self.left:
            raise FrameError(f"a frame ends {count - self.left} bytes before a field does; it was cut short or is not ours")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        """The next byte."""
        if self._at >= len(self._data):
            raise FrameError("a frame ends a byte before a field does; it was cut short or is not ours")
        self._at += 1
        return self._data[self._at - 1]

    def number(self, most: int = MOST) -> int:
        """A non-negative integer of at most `most`."""
        found = shift = 0
        while True:
            byte = self.byte()
            found |= (byte & 0x7F) << shift
            if found > most:
                raise FrameError(f"a frame holds a number above {most} where none may be; it is damaged or hostile")
            if byte < 0x80:
                return found
            shift += 7
            if shift > _MOST_SHIFT:
                raise FrameError("a frame holds a number of more than 63 bits; it is damaged or hostile")

    def octets(self, most: int = MOST_TEXT_BYTES) -> bytes:
        """Bytes after their length."""
        return self.take(self.number(most))

    def text(self, most: int = MOST_TEXT_BYTES) -> str:
        """A text in UTF-8."""
        return said(self.octets(most))

    def real(self) -> float:
        """A float64 in either form."""
        form = self.number()
        if form % 2 == 0:
            return float(form // 2)
        if form == _AS_IT_IS:
            return float(_DOUBLE.unpack(self.take(8))[0])
        raise FrameError(f"a frame holds a float of the form {form}, which is none; it is damaged or of a newer Atoll")

    def end(self) -> None:
        """Raise FrameError unless all was read."""
        if self.left:
            raise FrameError(f"a frame's head has {self.left} bytes more than its fields; it is damaged or hostile")
