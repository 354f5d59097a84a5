"""The BLAKE3 of a blob on its way: what it is after every chunk tells a damaged one, at no cost beside the hash itself."""

from __future__ import annotations

from array import array

from blake3 import blake3

from atoll.remote.values import LEAST_CHUNK_BYTES


def mark_of(hashed: blake3) -> int:
    """The first four bytes of what a hash has come to.

    >>> hex(mark_of(blake3()))  # of nothing, BLAKE3 is af1349b9...
    '0xb94913af'
    """
    return int.from_bytes(hashed.digest(4), "little")


class Hashed:
    """A running hash that keeps its mark wherever a chunk may end.

    >>> hashed = Hashed()
    >>> for data in (b"mod", b"el"):
    ...     hashed.update(memoryview(data))
    >>> hashed.digest == blake3(b"model").hexdigest(), hashed.at(5) == mark_of(blake3(b"model"))
    (True, True)
    """

    def __init__(self) -> None:
        self.size_bytes, self._hash, self._marks = 0, blake3(), array("I")

    def update(self, data: memoryview) -> None:
        """Take more bytes."""
        while len(data):
            piece = data[: LEAST_CHUNK_BYTES - self.size_bytes % LEAST_CHUNK_BYTES]
            self._hash.update(piece)
            self.size_bytes += len(piece)
            if not self.size_bytes % LEAST_CHUNK_BYTES:
                self._marks.append(mark_of(self._hash))
            data = data[len(piece) :]

    @property
    def digest(self) -> str:
        """In hexadecimal."""
        return self._hash.hexdigest()

    def at(self, end: int) -> int:
        """The mark at `end`: a multiple of the least chunk, or where the bytes end."""
        return mark_of(self._hash) if end == self.size_bytes else self._marks[end // LEAST_CHUNK_BYTES - 1]
