"""Files that are written whole or not at all, and what the operating system says of them in words."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from atoll.errors import StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SERIAL = itertools.count()


class Corrupt(StoreError):
    """A file that is torn, damaged, or not one of ours."""


@contextlib.contextmanager
def replacing(path: Path, size_bytes: int, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well, and leaves nothing behind when it does not."""
    temporary = path.with_name(f".{next(_SERIAL)}-{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if durable:
                flush_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise error if isinstance(error, StoreError) else trouble(error, path, size_bytes) from error


def make_folder(folder: Path) -> Path:
    """The folder, made with its parents where it is absent. Raises StoreError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise trouble(error, folder / "*") from error
    return folder


def flush_folder(folder: Path) -> None:
    """Make a rename in the folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def trouble(error: OSError, path: Path, size_bytes: int = 0) -> StoreError:
    """The StoreError for what the operating system said of a file."""
    if error.errno in _FULL:
        return StoreError(
            f"the disk that holds {path.parent} is full: {size_bytes} bytes were to be written; make room, then resume"
        )
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{path} does not exist")
    return StoreError(f"{path.parent} can't be used: {error.strerror or error}; give a folder that may be written")
