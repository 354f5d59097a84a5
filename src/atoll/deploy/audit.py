"""The audit log of a site: one line for each thing that left, came, was refused or decided, chained by SHA-256.

    {"seq":7,"time":"...","event":"sent","before":"<hash of record 6>", ... ,"hash":"<SHA-256 of this line without it>"}

A record's `hash` covers `before`, so it covers every record before it (Schneier and Kelsey, ACM TISSEC 2(2), 1999, without
their evolving keys). Beside the log lies its head, the last record's number and hash: what was cut off at the end is found
against it, or against a head that somebody else kept (`atoll audit head`). A key signs heads and, every so often, a record.

What a crash in the middle of a write leaves is never removed: the next opening ends it, and says so in a `mended` record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.errors import ConfigError, StoreError
from atoll.store import files
from atoll.store.lock import Lock

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_LINE_BYTES = 1 << 16
GENESIS = "0" * 64  # what stands before the first record
_OWN = ("seq", "time", "event", "before", "hash")


class Head(NamedTuple):
    """How far a log goes: its last record, and the byte after it."""

    log: str  # the log's own name, drawn when it was begun
    seq: int
    hash: str
    size_bytes: int
    signature: str = ""  # hex, of the site's key

    def statement(self) -> bytes:
        """What the key signs."""
        return f"atoll audit head 1\n{self.log}\n{self.seq}\n{self.hash}\n".encode()


Record = dict[str, Any]


def line_of(record: Record) -> bytes:
    """A record as its one canonical line, its hash included.

    >>> line_of({"seq": 0, "event": "opened"}).count(b"\\n")
    1
    """
    body = _json({key: value for key, value in record.items() if key != "hash"})
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + b',"hash":"' + digest.encode() + b'"}\n'


def record_of(line: bytes) -> Record | None:
    """The record of a line without its end; None unless it is one, byte for byte as `line_of` writes it."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not all(key in record for key in _OWN) or not isinstance(record["seq"], int):
        return None
    return record if line_of(record) == line + b"\n" else None


def _json(value: Record) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a record of the audit log holds what JSON has not ({error}); give texts and numbers") from error


class AuditLog:
    """The log in a file, for any number of writers in any number of processes; each record is on disk when `append` returns.

    `key`: signs the head, and every `anchor_every`-th record is one that carries a signature of all before it.

    >>> import tempfile
    >>> log = AuditLog(Path(tempfile.mkdtemp()) / "audit.jsonl")
    >>> log.append("approved", job="4f0c", by="anna")["seq"]
    1
    """

    def __init__(
        self,
        path: str | Path,
        key: Ed25519PrivateKey | None = None,
        anchor_every: int = 100,
        patience_s: float = 30.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open the log, or begin it; what a crash left half written is mended here.

        Raises StoreError where the log is not what its head says, or can't be written.
        """
        if anchor_every < 2:
            raise ConfigError(f"anchor_every = {anchor_every}: must be 2 or more, or nothing but signatures would be written")
        self.path = Path(path)
        self._key, self._anchor_every, self._patience_s, self._now = key, anchor_every, patience_s, now
        files.make_folder(self.path.parent)
        with self._held() as file:
            self._caught_up(file)

    def append(self, event: str, **fields: Any) -> Record:
        """Write one record; returns it, with its number, time and hash.

        Raises:
            ConfigError: a field takes the name of one that every record has, or is not JSON.
            StoreError: the disk is full, the log was changed, or another process has held it for too long.
        """
        if taken := sorted(set(fields) & set(_OWN)):
            raise ConfigError(f"a record can't have a field {taken[0]!r} of its own; give it another name")
        with self._held() as file:
            head = self._caught_up(file)
            if self._key is not None and (head.seq + 1) % self._anchor_every == 0:
                head = self._write(file, head, "anchor", {"signature": self._key.sign(head.statement()).hex()})[0]
            return self._write(file, head, event, fields)[1]

    @property
    def head(self) -> Head:
        """How far the log goes, as the file beside it says."""
        found = read_head(head_path(self.path))
        if found is None:
            raise StoreError(f"{head_path(self.path)} is gone; keep the head beside its log")
        return found

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        """The log's file, for us alone; the wait for other writers is bounded."""
        until = time.monotonic() + self._patience_s
        while True:
            try:
                lock = Lock(self.path.with_name(self.path.name + ".lock"), f"the audit log {self.path}")
                break
            except StoreError as error:
                if error.__cause__ is not None or time.monotonic() >= until:
                    raise
                time.sleep(0.002)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                yield file
            finally:
                os.close(file)
        except OSError as error:
            raise error if isinstance(error, StoreError) else files.trouble(error, self.path) from error
        finally:
            lock.release()

    def _caught_up(self, file: int) -> Head:
        """The head after what other writers have added; a log that is new is begun, a torn end is mended."""
        size, head = os.fstat(file).st_size, read_head(head_path(self.path))
        if head is None:
            files.flush_folder(self.path.parent)
            head = Head("", -1, GENESIS, 0)
        elif size < head.size_bytes:
            told = f"its head tells of {head.seq + 1} records in {head.size_bytes} bytes, and it has {size} bytes"
            raise StoreError(f"the audit log {self.path} was cut short: {told}; find out who did, nothing is written to it")
        tail, known = os.pread(file, size - head.size_bytes, head.size_bytes), head
        begins = head.size_bytes
        for line in tail.split(b"\n"):
            ends = min(begins + len(line) + 1, size)
            record = record_of(line)
            if record is not None and not follows(record, head):  # a crash leaves pieces, never another record
                told = f"record {record['seq']} does not follow record {head.seq}; see `atoll audit verify {self.path}`"
                raise StoreError(f"the audit log {self.path} was changed: {told}")
            if record is not None:
                head = Head(head.log or record.get("log", ""), record["seq"], record["hash"], ends)
            begins = ends
        self._same(file, known)
        if head.seq < 0 and size == 0:
            return self._write(file, head, "opened", {"log": secrets.token_hex(8)})[0]
        if head.seq < 0 or head.size_bytes < size or not tail.endswith(b"\n" if tail else b""):
            return self._mended(file, head, size)
        return head

    def _same(self, file: int, head: Head) -> None:
        """The record that the head names is still there: a log that was changed is not written on."""
        if head.seq < 0:
            return
        begins = max(head.size_bytes - MOST_LINE_BYTES - 1, 0)
        last = os.pread(file, head.size_bytes - begins, begins).removesuffix(b"\n").rpartition(b"\n")[2]
        record = record_of(last)
        if record is None or (record["seq"], record["hash"]) != (head.seq, head.hash):
            raise StoreError(f"the audit log {self.path} was changed at record {head.seq}; see `atoll audit verify {self.path}`")

    def _mended(self, file: int, head: Head, size: int) -> Head:
        """Say what a crash left: bytes that are no record, or a record without its end."""
        ended = size == 0 or os.pread(file, 1, size - 1) == b"\n"
        torn = os.pread(file, size - head.size_bytes, head.size_bytes)
        if not ended:
            torn = torn + b"\n" if torn else b""
        fields = {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}
        if head.seq < 0:
            fields["log"] = secrets.token_hex(8)
        return self._write(file, head, "mended", fields, before=b"" if ended else b"\n")[0]

    def _write(self, file: int, head: Head, event: str, fields: Record, before: bytes = b"") -> tuple[Head, Record]:
        """One record after the head, on disk, and the head after it; a crash between the two leaves the head behind."""
        told = {"seq": head.seq + 1, "time": self._now().isoformat(timespec="milliseconds"), "event": event, "before": head.hash}
        line = line_of({**told, **fields})
        if len(line) > MOST_LINE_BYTES:
            raise ConfigError(f"a record of {len(line)} bytes is too long: {MOST_LINE_BYTES} is the limit; tell less")
        rest = memoryview(before + line)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
        record: Record = json.loads(line)
        after = Head(head.log or record["log"], record["seq"], record["hash"], os.fstat(file).st_size)
        if self._key is not None:
            after = after._replace(signature=self._key.sign(after.statement()).hex())
        path = head_path(self.path)
        with files.replacing(path, 256, durable=True) as written:
            written.write(json.dumps(after._asdict()).encode() + b"\n")
        return after, record


def follows(record: Record, head: Head) -> bool:
    """The record comes right after the head."""
    return bool(record["seq"] == head.seq + 1 and record["before"] == head.hash)


def head_path(path: Path) -> Path:
    """Where the head of a log lies."""
    return path.with_name(path.name + ".head")


def read_head(path: Path) -> Head | None:
    """The head in a file, or None where there is no file.

    Raises:
        StoreError: it is no head.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        head = Head(**found)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path} is no head of an audit log ({error}); put back the one that was kept with it") from error
    except OSError as error:
        raise files.trouble(error, path) from error
    if not (isinstance(head.seq, int) and isinstance(head.size_bytes, int) and head.seq >= 0 and isinstance(head.hash, str)):
        raise StoreError(f"{path} is no head of an audit log; put back the one that was kept with it")
    return head
