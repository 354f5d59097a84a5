"""What a blob holds: a frame without a checksum, as its digest is one, placed so that a mapped file is as good as memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from atoll.errors import FrameError
from atoll.store import files
from atoll.types import Assignment, Failure, Update
from atoll.wire import frame

_ALIGN = 64  # as torch aligns what it allocates: a BLAS may round otherwise at odd addresses


def pieces(value: Assignment | Update | Failure) -> Iterator[memoryview]:
    """A blob's bytes, the tensors not copied: zeros first, so many that the tensors begin at a multiple of 64.

    Raises FrameError as `frame.write`.
    """
    written = frame.pieces(value)
    front = next(written)
    yield memoryview(bytes(-len(front) % _ALIGN))
    yield front
    yield from written


def load(path: Path) -> Assignment | Update | Failure:
    """What a file holds. Its tensors are the file itself, mapped: they cost page cache, and memory where they are written to,
    which changes nothing in the file. They outlive its removal.

    Raises:
        FrameError: not a frame, or cut short. StoreError: the file can't be read.
    """
    try:
        with open(path, "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except ValueError:
        raise FrameError(f"{path} is empty: it was cut short") from None
    except OSError as error:
        raise files.trouble(error, path) from error
    head = bytes(view[:_ALIGN])
    view = view[len(head) - len(head.lstrip(b"\0")) :]
    front = frame.read_front(view)
    payload = view[front.size_bytes :]
    if len(payload) != front.payload_bytes:
        raise FrameError(f"a frame's tensors are announced as {front.payload_bytes} bytes, and its file has {len(payload)}")
    return front.filled(payload)
