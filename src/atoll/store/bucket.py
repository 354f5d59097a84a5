"""Blobs below a URL, by fsspec: S3, Google Cloud Storage, Azure, WebDAV, SFTP, memory, and whatever else it opens.

What is written appears at the end of an fsspec transaction, which is atomic on every object store. Where a file
system knows no transactions a killed process may leave part of a blob; it is noticed when it is read, and a run goes
on from the checkpoint before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from atoll.errors import AtollError, ConfigError, MissingExtra, StoreError, missing_extra
from atoll.store.places import Place, Readable, Writable

_PART_BYTES = 16 << 20  # of a transfer: S3 takes at most 10,000 parts, so a blob may have 160 GB


class Bucket:
    """Blobs below a URL; credentials are fsspec's own matter: its configuration, or that of the package behind the URL.

    >>> bucket = Bucket("memory://example")
    >>> with bucket.at("a/b").writing(5) as file:
    ...     _ = file.write(b"whole")
    >>> bucket.names("a")
    ['a/b']
    """

    def __init__(self, url: str) -> None:
        """Raises MissingExtra without fsspec or the package behind the URL, ConfigError for a URL of no known kind."""
        self.url = url.rstrip("/")
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise missing_extra("fsspec", "blobs", "blobs at a URL") from None
        try:
            # An instance of our own: a transaction belongs to an instance, and two runs may write at once.
            self._files, self._root = url_to_fs(self.url, skip_instance_cache=True)
        except ImportError as error:
            raise MissingExtra(f"{self.url} needs a package that is not here: {error}") from error
        except ValueError as error:
            raise ConfigError(f"{self.url} is no place for blobs: {error}; give a folder, s3://, gs://, ...") from error

    def at(self, name: str) -> Place:
        return _File(self._files, f"{self._root}/{name}", f"{self.url}/{name}")

    def names(self, under: str) -> list[str]:
        with _told(f"{self.url}/{under}"):
            self._files.invalidate_cache()
            found = self._files.find(f"{self._root}/{under}")
        start = len(self._files._strip_protocol(self._root).rstrip("/")) + 1
        return sorted(path[start:] for path in found)

    def delete(self, name: str) -> None:
        with _told(f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    def __str__(self) -> str:
        return self.url


class _File(NamedTuple):
    """One blob of a bucket."""

    files: Any
    path: str
    url: str

    @contextlib.contextmanager
    def writing(self, size_bytes: int, *, durable: bool = False) -> Iterator[Writable]:
        transaction = self.files.transaction
        transaction.start()
        try:
            with _told(self.url):
                self.files.makedirs(self.path.rpartition("/")[0], exist_ok=True)
                stream = self.files.open(self.path, "wb", block_size=_PART_BYTES)
            yield _Stream(stream, self.url)
            with _told(self.url):
                stream.close()
        except BaseException:
            with contextlib.suppress(Exception):  # what ended the writing matters more
                transaction.complete(commit=False)
            raise
        with _told(self.url):
            transaction.complete()

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[Readable, int]]:
        with _told(self.url):
            self.files.invalidate_cache()
            size_bytes = self.files.size(self.path)
            stream = self.files.open(self.path, "rb", block_size=_PART_BYTES)
        try:
            yield _Stream(stream, self.url), int(size_bytes)
        finally:
            with _told(self.url):
                stream.close()

    def __str__(self) -> str:
        return self.url


class _Stream(NamedTuple):
    """A file of fsspec whose errors are ours."""

    stream: Any
    url: str

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        with _told(self.url):
            return self.stream.write(data)

    def read(self, size: int, /) -> bytes:
        with _told(self.url):
            return bytes(self.stream.read(size))

    def readinto(self, place: memoryview, /) -> int:
        with _told(self.url):
            return int(self.stream.readinto(place))


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Whatever a package behind fsspec raises, and each raises its own, as a StoreError."""
    try:
        yield
    except AtollError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{url} does not exist") from error
    except Exception as error:
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StoreError(f"{url} can't be used: {told}; see that the place exists, and that its credentials are given") from error
