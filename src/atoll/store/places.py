"""Where blobs lie: a file in a folder by default, and by the same two protocols a file in a bucket, or a sealed one in either.

A blob is written from front to back, whole or not at all, and read from front to back. That is all that a folder and
an object store have in common, and all that a checkpoint or a model needs. What needs more stays in the run's local
folder: a run's lock is a lock of the operating system, its journal is flushed answer by answer before a client is told
that its work is safe, and its client memory is committed by a rename.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from atoll.errors import StoreError
from atoll.store import files


class Writable(Protocol):
    """A file that takes bytes one after another."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object: ...


class Readable(Protocol):
    """A file that gives bytes one after another."""

    def read(self, size: int, /) -> bytes: ...
    def readinto(self, place: memoryview, /) -> int: ...


class Place(Protocol):
    """Where one blob lies; its text is what errors call it."""

    def writing(self, size_bytes: int, *, durable: bool = False) -> AbstractContextManager[Writable]:
        """Takes the place of what was there when the block ends well. Raises StoreError where it can't be written."""
        ...

    def reading(self) -> AbstractContextManager[tuple[Readable, int]]:
        """The file, and its size in bytes. Raises StoreError where it can't be read."""
        ...


class Blobs(Protocol):
    """Blobs by name, such as "checkpoints/00000003.safetensors"."""

    def at(self, name: str) -> Place: ...
    def names(self, under: str) -> list[str]:
        """The names that begin with `under`, a name's first parts, sorted; [] where there are none."""
        ...

    def delete(self, name: str) -> None:
        """One that is not there is as good as deleted."""
        ...


# How a store of local files lays one: (its path, its name within the store) -> where it is written and read.
Lay = Callable[[Path, str], "Path | Place"]


def plain(path: Path, name: str) -> Path | Place:
    """A file as it is."""
    return path


class LocalFile(NamedTuple):
    """A file on this machine, written by way of a temporary one beside it.

    >>> import tempfile
    >>> place = LocalFile(Path(tempfile.mkdtemp()) / "blob")
    >>> with place.writing(5) as file:
    ...     _ = file.write(b"whole")
    >>> with place.reading() as (file, size_bytes):
    ...     (file.read(2), size_bytes)
    (b'wh', 5)
    """

    path: Path

    def writing(self, size_bytes: int, *, durable: bool = False) -> AbstractContextManager[Writable]:
        return files.replacing(self.path, size_bytes, durable=durable)

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[Readable, int]]:
        try:
            with open(self.path, "rb") as file:
                yield file, os.fstat(file.fileno()).st_size
        except StoreError:
            raise
        except OSError as error:
            raise files.trouble(error, self.path) from error

    def __str__(self) -> str:
        return str(self.path)


class Folder:
    """Blobs in a folder, which is made when the first is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def at(self, name: str) -> Place:
        return _Made(self.folder / name)

    def names(self, under: str) -> list[str]:
        found = sorted(path for path in (self.folder / under).rglob("*") if path.is_file() and not path.name.startswith("."))
        return [path.relative_to(self.folder).as_posix() for path in found]

    def delete(self, name: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        files.sweep(path.parent)

    def __str__(self) -> str:
        return str(self.folder)


class _Made(LocalFile):
    """A local file whose folder is made before it is written, and cleared of what a killed process left there."""

    def writing(self, size_bytes: int, *, durable: bool = False) -> AbstractContextManager[Writable]:
        files.sweep(files.make_folder(self.path.parent))
        return super().writing(size_bytes, durable=durable)


def place(where: Path | Place) -> Place:
    """A path as a place."""
    return LocalFile(where) if isinstance(where, Path) else where


def opened(where: str | Path) -> Blobs:
    """Blobs in a folder, or below any URL that fsspec opens, such as s3://bucket/atoll or memory://atoll.

    Raises MissingExtra without fsspec or the package behind the URL, ConfigError for a URL of no known kind.
    """
    url = urlsplit(str(where))
    if url.scheme == "file":
        return Folder(Path(unquote(url.path)))
    if "://" not in str(where):
        return Folder(Path(where).absolute())
    from atoll.store.bucket import Bucket

    return Bucket(str(where))
