"""Files by the BLAKE3 of what they hold: written once, received in parts, resumed after any cut, never believed unread."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from atoll.errors import RemoteError, StoreError
from atoll.remote.marks import Hashed, mark_of
from atoll.remote.values import CHUNK_BYTES, Blob, Limits
from atoll.store import files

_SLICE_BYTES = 1 << 22
_PART = ".part"
_SERIAL = itertools.count()


class Moved(RemoteError):
    """Bytes that do not begin where the part ends: another call has carried on."""


class Damaged(RemoteError):
    """Bytes that are not those that were announced; they have been dropped."""


class Spool:
    """A folder of blobs. What a killed process left whole is checked again before it counts as whole.

    >>> import tempfile
    >>> spool = Spool(Path(tempfile.mkdtemp()))
    >>> blob = spool.put([memoryview(b"model")])
    >>> spool.path(blob).read_bytes(), spool.has(blob)
    (b'model', True)
    """

    def __init__(self, folder: Path, limits: Limits = Limits()) -> None:  # noqa: B008
        self.folder, self._limits, self._guard = files.make_folder(folder), limits, threading.Lock()
        self._parts: dict[str, Part] = {}
        self._hashed: dict[str, Hashed] = {}  # of blobs that are sent from here
        files.sweep(folder)
        for left in folder.iterdir():
            if not left.suffix:
                left.rename(left.with_name(left.name + _PART))

    def path(self, blob: Blob) -> Path:
        """Where it lies, or would."""
        return self.folder / blob.digest

    def has(self, blob: Blob) -> bool:
        """It is here, whole and checked."""
        return self.path(blob).exists()

    def put(self, pieces: Iterable[memoryview]) -> Blob:
        """Keep these bytes, one after another. Raises StoreError where the disk is full."""
        hashed = Hashed()
        temporary = self.folder / f".{next(_SERIAL)}-{os.getpid()}.tmp"
        try:
            with open(temporary, "wb", buffering=0) as file, ThreadPoolExecutor(1) as hashing:
                for piece in pieces:
                    for at in range(0, len(piece), _SLICE_BYTES):
                        part = piece[at : at + _SLICE_BYTES]
                        done = hashing.submit(hashed.update, part)  # beside the disk
                        _write(file, part)
                        done.result()
            blob = Blob(hashed.digest, hashed.size_bytes)
            os.replace(temporary, self.path(blob))
        except OSError as error:
            raise files.trouble(error, temporary, hashed.size_bytes) from error
        finally:
            temporary.unlink(missing_ok=True)
        self._hashed[blob.digest] = hashed
        return blob

    def read(self, blob: Blob, file: int, at: int, chunk_bytes: int = CHUNK_BYTES) -> tuple[bytes, int]:
        """From `at` to the end of a chunk, out of a blob's open file, and the mark there; no bytes at its end.

        `chunk_bytes`: a multiple of LEAST_CHUNK_BYTES.

        Raises Damaged where the file is not the blob any more.
        """
        hashed = self._hashed.get(blob.digest)
        if hashed is None:  # left by an earlier process
            hashed = Hashed()
            for begin in range(0, blob.size_bytes, _SLICE_BYTES):
                hashed.update(memoryview(os.pread(file, _SLICE_BYTES, begin)))
            self._hashed[blob.digest] = hashed
        ends = min(at - at % chunk_bytes + chunk_bytes, blob.size_bytes)
        data = os.pread(file, max(ends - at, 0), at)
        if data and at + len(data) != ends:
            raise Damaged(f"{self.path(blob)} has become shorter than it was; somebody has written to it")
        return data, hashed.at(ends) if data else 0

    def part(self, blob: Blob) -> Part:
        """What there is of a blob so far, to be added to; one and the same for all who receive it.

        Raises:
            RemoteError: no digest, or larger than is taken here. StoreError: the disk has no room for it.
        """
        if not re.fullmatch("[0-9a-f]{64}", blob.digest):
            raise RemoteError(f"{blob.digest[:80]!r} is no digest; the other end is damaged or hostile")
        if blob.size_bytes > self._limits.blob_bytes:
            raise RemoteError(f"{blob.size_bytes} bytes were announced; {self._limits.blob_bytes} are taken here at most")
        with self._guard:
            part = self._parts.get(blob.digest)
            if part is None:
                part = self._parts[blob.digest] = Part(self.path(blob), blob)
                missing_bytes = blob.size_bytes - part.offset
                if missing_bytes and shutil.disk_usage(self.folder).free - missing_bytes < self._limits.free_bytes:
                    self._parts.pop(blob.digest).close()
                    raise StoreError(
                        f"the disk that holds {self.folder} has no room for {missing_bytes} bytes beside the "
                        f"{self._limits.free_bytes} that stay free; make room there"
                    )
            if part.blob != blob:
                raise RemoteError(f"{blob.digest} is of {part.blob.size_bytes} bytes, and {blob.size_bytes} were announced")
            return part

    def add(self, blob: Blob, at: int, data: bytes | memoryview, mark: int) -> int:
        """Put `data` at the end of a blob's part, which must be `at`; return the new end. Raises as `Part.add` and `part` do."""
        part = self.part(blob)
        try:
            return part.add(at, data, mark)
        except StoreError:
            with self._guard:
                self._parts.pop(blob.digest, None)  # its file is closed; the next try opens it anew
            raise

    def finish(self, part: Part) -> None:
        """Check a part that is complete: it becomes a blob, or is dropped. Raises Damaged."""
        with self._guard:
            self._parts.pop(part.blob.digest, None)
        part.finish()

    def drop(self, blob: Blob) -> None:
        """Forget it, whole or in part."""
        with self._guard:
            part = self._parts.pop(blob.digest, None)
            self._hashed.pop(blob.digest, None)
        if part is not None:
            part.close()
        for path in (self.path(blob), _part(self.path(blob))):
            path.unlink(missing_ok=True)

    def keep(self, wanted: Collection[Blob]) -> None:
        """Drop all others."""
        digests = {blob.digest for blob in wanted}
        for path in self.folder.iterdir():
            if path.stem not in digests and not path.name.startswith("."):
                self.drop(Blob(path.stem, 0))

    def close(self) -> None:
        """Close the files; what they hold stays."""
        with self._guard:
            for part in self._parts.values():
                part.close()
            self._parts.clear()


class Part:
    """A blob that is not whole yet: an open file, and the hash of what it holds. Made by `Spool.part`."""

    def __init__(self, path: Path, blob: Blob) -> None:
        self.blob, self.offset, self._path = blob, 0, path
        self._hash, self._guard = blake3(), threading.Lock()
        try:
            self._file = open(_part(path), "ab+", buffering=0)  # noqa: SIM115
            self._file.seek(0)
            while piece := self._file.read(_SLICE_BYTES):
                self._hash.update(piece)
                self.offset += len(piece)
        except OSError as error:
            raise files.trouble(error, path) from error
        if self.offset > blob.size_bytes:  # of nobody who could have been believed
            self._restart()

    def add(self, at: int, data: bytes | memoryview, mark: int) -> int:
        """Put `data` at the end, which must be `at`; return the new end.

        Raises:
            Moved: the end is elsewhere by now. Damaged: bytes that do not come to that mark. RemoteError: more than announced.
            StoreError: the disk is full.
        """
        with self._guard:
            if at != self.offset or self._file.closed:
                raise Moved(f"bytes from {at} on, where {self.offset} are here; another call has carried on")
            if at + len(data) > self.blob.size_bytes:
                raise RemoteError(f"more bytes than the {self.blob.size_bytes} announced; the other end is damaged or hostile")
            hashed = self._hash.copy()
            hashed.update(data)
            if mark_of(hashed) != mark:
                raise Damaged(f"a chunk at {at} was damaged on the way; it is fetched again")
            try:
                _write(self._file, memoryview(data))
            except OSError as error:
                self._file.close()
                raise files.trouble(error, self._path, len(data)) from error
            self._hash = hashed
            self.offset += len(data)
            return self.offset

    def finish(self) -> None:
        """See `Spool.finish`."""
        with self._guard:
            if self._file.closed:
                return
            if self.offset != self.blob.size_bytes or self._hash.hexdigest() != self.blob.digest:
                self._restart()
                self._file.close()
                raise Damaged(f"{self.blob.size_bytes} bytes are not those of the digest {self.blob.digest}; they were dropped")
            self._file.close()
            _part(self._path).replace(self._path)

    def close(self) -> None:
        """Close the file; what it holds stays."""
        with self._guard:
            self._file.close()

    def _restart(self) -> None:
        self._file.truncate(0)
        self._hash, self.offset = blake3(), 0


def _write(file: io.FileIO, left: memoryview) -> None:
    while len(left):
        left = left[file.write(left) :]


def spelled(name: str) -> str:
    """A folder's name that no other name has: what is readable of it, and a digest of all of it.

    >>> spelled("../etc")
    'etc-f7f9121fdb53d8de'
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub('[^A-Za-z0-9_-]+', '', name)[:40]}-{digest}"


def _part(path: Path) -> Path:
    return path.with_name(path.name + _PART)
