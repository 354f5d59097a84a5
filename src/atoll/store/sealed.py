"""Blobs that are encrypted where they lie: AES-256-GCM in chunks, after STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015).

"Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015, section 7: chunk i of a message is
sealed under a nonce of its number and of whether it is the last, so that none can be dropped, repeated, reordered or
added. Every blob has a key of its own, HKDF-SHA256 (RFC 5869) of the store's key and 32 random bytes of its head, so
that no nonce of it is ever used twice, however many blobs one store's key seals. The associated data of each chunk are the
head and the blob's logical name: a blob under another's name, or another run's, is not opened.

    head:  "atoll sealed 1\\n" and a zero byte | id of the store's key, 8 bytes | salt, 32 bytes
    chunk: up to 262,144 bytes, encrypted | tag, 16 bytes          nonce: number, 11 bytes | 1 for the last, else 0

What is not hidden: sizes, times, and the names of files. What is not noticed: a whole blob, or the last of several,
put back to what it was before under the same name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atoll.errors import StoreError, VersionError, missing_extra
from atoll.store.files import Corrupt
from atoll.store.keys import ID_BYTES, KEY, KEY_FILE, Keys, WrongKey
from atoll.store.places import Blobs, Lay, LocalFile, Place, Readable, Writable, plain

CHUNK_BYTES, TAG_BYTES, SALT_BYTES = 1 << 18, 16, 32
_KIND = b"atoll sealed "
_MAGIC = _KIND + b"1\n\0"
HEAD_BYTES = len(_MAGIC) + ID_BYTES + SALT_BYTES


class Sealed(NamedTuple):
    """A place whose blob is sealed under a name. At most two chunks are in memory.

    >>> import tempfile
    >>> file = LocalFile(Path(tempfile.mkdtemp()) / "blob")
    >>> place = Sealed(file, Keys(bytes(32)), "run-1/blob")
    >>> with place.writing(5) as writer:
    ...     _ = writer.write(b"whole")
    >>> with place.reading() as (reader, size_bytes):
    ...     (reader.read(9), size_bytes)
    (b'whole', 5)
    >>> b"whole" in file.path.read_bytes()
    False
    """

    place: Place
    keys: Keys
    name: str

    @contextlib.contextmanager
    def writing(self, size_bytes: int, *, durable: bool = False) -> Iterator[Writable]:
        id, secret = self.keys.newest
        head = _MAGIC + id + os.urandom(SALT_BYTES)
        cipher = _cipher(secret, head)
        with self.place.writing(sealed_bytes(size_bytes), durable=durable) as file:
            file.write(head)
            writer = _Writer(file, cipher, head + self.name.encode("utf-8", "surrogatepass"), size_bytes)
            yield writer
            writer.finish()

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[Readable, int]]:
        with self.place.reading() as (file, size_bytes):
            head = _exactly(file, memoryview(bytearray(HEAD_BYTES))).tobytes()
            if len(head) < HEAD_BYTES or not head.startswith(_MAGIC):
                raise _not_sealed(head, str(self))
            secret = self.keys.of(head[len(_MAGIC) : -SALT_BYTES], str(self))
            known = head + self.name.encode("utf-8", "surrogatepass")
            reader = _Reader(file, size_bytes - HEAD_BYTES, _cipher(secret, head), known, str(self))
            yield reader, reader.size_bytes

    def __str__(self) -> str:
        return str(self.place)


@dataclass(frozen=True)
class Seal:
    """Lays every file of a store of files sealed, under a name that begins with `scope`."""

    keys: Keys
    scope: str

    def __call__(self, path: Path, name: str) -> Place:
        return Sealed(LocalFile(path), self.keys, f"{self.scope}/{name}")


def lay(keys: Keys | None, scope: str) -> Lay:
    """How a journal or memories lay their files: sealed where there are keys.

    >>> lay(None, "run-1/journal")(Path("answer"), "answer")
    PosixPath('answer')
    """
    if keys:
        return Seal(keys, scope)
    return plain


class SealedBlobs(NamedTuple):
    """Blobs that are sealed, each under its name and what `scope` they belong to."""

    blobs: Blobs
    keys: Keys
    scope: str

    def at(self, name: str) -> Place:
        return Sealed(self.blobs.at(name), self.keys, f"{self.scope}/{name}")

    def names(self, under: str) -> list[str]:
        return self.blobs.names(under)

    def delete(self, name: str) -> None:
        self.blobs.delete(name)

    def __str__(self) -> str:
        return str(self.blobs)


def is_sealed(start: bytes) -> bool:
    """Whether the first 8 bytes of a blob, or more, are those of a sealed one.

    >>> is_sealed(b"atoll se"), is_sealed(b"atoll")
    (True, False)
    """
    return len(start) >= 8 and start[: len(_KIND)] == _KIND[: len(start)]


def refuse_sealed(start: bytes, what: str) -> None:
    """Raise WrongKey where a blob that is to be read as it is begins as a sealed one does."""
    if is_sealed(start):
        raise WrongKey(f"{what} is sealed, and no key is given: give it in {KEY}, or the file of it in {KEY_FILE}")


def sealed_bytes(size_bytes: int) -> int:
    """The size of a sealed blob of so many bytes.

    >>> sealed_bytes(0), sealed_bytes(CHUNK_BYTES), sealed_bytes(CHUNK_BYTES + 1)
    (72, 262216, 262233)
    """
    return HEAD_BYTES + size_bytes + TAG_BYTES * max(1, -(-size_bytes // CHUNK_BYTES))


class _Writer:
    """Seals what it is given, chunk by chunk; a full chunk waits until it is known whether it is the last."""

    def __init__(self, file: Writable, cipher: Any, known: bytes, size_bytes: int) -> None:
        self._file, self._cipher, self._known = file, cipher, known
        self._filled = self._number = 0
        self._plain = memoryview(b"")
        self._make_room(min(size_bytes, CHUNK_BYTES))  # for most blobs a whole chunk's costs more than to seal them

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        left = memoryview(data).cast("B")
        if len(self._plain) < min(CHUNK_BYTES, self._filled + len(left)):  # more than was said
            self._make_room(CHUNK_BYTES)
        while len(left):
            if self._filled == CHUNK_BYTES:
                self._seal(self._plain, last=False)
                self._filled = 0
            if self._filled == 0 and len(left) > CHUNK_BYTES:  # more comes, and no copy is needed
                self._seal(left[:CHUNK_BYTES], last=False)
                left = left[CHUNK_BYTES:]
                continue
            taken = min(len(left), CHUNK_BYTES - self._filled)
            self._plain[self._filled : self._filled + taken] = left[:taken]
            self._filled += taken
            left = left[taken:]
        return len(data)

    def _make_room(self, size_bytes: int) -> None:
        kept, self._plain = self._plain, memoryview(bytearray(size_bytes))
        self._plain[: self._filled] = kept[: self._filled]
        self._sealed = memoryview(bytearray(size_bytes + TAG_BYTES))

    def finish(self) -> None:
        self._seal(self._plain[: self._filled], last=True)

    def _seal(self, plain: memoryview, *, last: bool) -> None:
        sealed = self._sealed[: len(plain) + TAG_BYTES]
        self._cipher.encrypt_into(_nonce(self._number, last), plain, self._known, sealed)
        self._file.write(sealed)
        self._number += 1


class _Reader:
    """Opens chunk by chunk; nothing of a chunk is given before all of it is known to be what was written."""

    def __init__(self, file: Readable, body_bytes: int, cipher: Any, known: bytes, what: str) -> None:
        self._file, self._cipher, self._known, self._what = file, cipher, known, what
        self._chunks = -(-body_bytes // (CHUNK_BYTES + TAG_BYTES))
        if body_bytes - (CHUNK_BYTES + TAG_BYTES) * max(0, self._chunks - 1) < TAG_BYTES:
            raise Corrupt(f"{what} is torn: it ends within its last chunk")
        self.size_bytes = body_bytes - TAG_BYTES * self._chunks
        self._left = body_bytes
        self._sealed = memoryview(bytearray(min(body_bytes, CHUNK_BYTES + TAG_BYTES)))
        self._room = memoryview(bytearray(min(self.size_bytes, CHUNK_BYTES)))
        self._number = 0
        self._plain = self._room[:0]
        self._open()  # so that an empty blob is known to be one

    def readinto(self, place: memoryview, /) -> int:
        if not len(self._plain) and self._left:
            self._open()
        taken = min(len(place), len(self._plain))
        place[:taken] = self._plain[:taken]
        self._plain = self._plain[taken:]
        return taken

    def read(self, size: int, /) -> bytes:
        return _exactly(self, memoryview(bytearray(size))).tobytes()

    def _open(self) -> None:
        from cryptography.exceptions import InvalidTag

        sealed = _exactly(self._file, self._sealed[: min(self._left, len(self._sealed))])
        last = self._number == self._chunks - 1
        self._plain = self._room[: max(0, len(sealed) - TAG_BYTES)]
        try:
            self._cipher.decrypt_into(_nonce(self._number, last), sealed, self._known, self._plain)
        except (InvalidTag, ValueError) as error:  # ValueError: the file became shorter while it was read
            raise Corrupt(
                f"{self._what} is damaged: its chunk {self._number + 1} of {self._chunks} is not what was sealed under this name"
            ) from error
        self._left -= len(sealed)
        self._number += 1


def _cipher(secret: bytes, head: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise missing_extra("cryptography", "encryption", "sealed blobs") from None
    return AESGCM(HKDF(SHA256(), 32, salt=head[-SALT_BYTES:], info=b"atoll store blob 1").derive(secret))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _exactly(file: Readable, place: memoryview) -> memoryview:
    """Fill the place; what could be filled of it where the file ends before."""
    done = 0
    while done < len(place) and (got := file.readinto(place[done:])):
        done += got
    return place[:done]


def _not_sealed(head: bytes, what: str) -> StoreError | VersionError:
    if _MAGIC.startswith(head[: len(_MAGIC)]):
        return Corrupt(f"{what} is torn: it is {len(head)} bytes long, too short for its head")
    if is_sealed(head):
        return VersionError(f"{what} was sealed by a newer Atoll; upgrade atoll")
    return Corrupt(f"{what} is not sealed, and a key is given: unset {KEY} and {KEY_FILE} to read what was kept without one")
