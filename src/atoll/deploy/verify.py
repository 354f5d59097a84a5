"""Every line of an audit log, and the heads that others kept of it: what was changed, removed, inserted, moved or cut off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from atoll.deploy.audit import GENESIS, Head, Record, head_path, read_head, record_of
from atoll.deploy.rules.signatures import verified
from atoll.store import files


class Finding(NamedTuple):
    """Something that is not as it was written."""

    line: int  # from 1; 0: of the log as a whole
    text: str


class Verdict(NamedTuple):
    """What a log is worth."""

    records: int
    findings: tuple[Finding, ...]  # none: it is whole, as far as `notes` do not narrow that
    notes: tuple[str, ...]  # what was mended, and what could not be looked at
    head: Head | None  # how far it goes


def verify(path: str | Path, heads: Sequence[Head] = (), keys: Sequence[str] = ()) -> Verdict:
    """Read the whole log in constant memory, against the head beside it and `heads` kept elsewhere.

    `keys`: Ed25519 public keys in base64; heads and anchors must then be signed by one of them. Without a key or a head from
    elsewhere, whoever can write the log and its head can write both anew: the notes say so.

    Raises:
        StoreError: the log or its head can't be read.

    >>> import tempfile
    >>> from atoll.deploy.audit import AuditLog
    >>> path = Path(tempfile.mkdtemp()) / "audit.jsonl"
    >>> log = AuditLog(path)
    >>> _ = log.append("sent", to="coordinator", bytes=1024)
    >>> verify(path).findings
    ()
    >>> _ = path.write_text(path.read_text().replace("1024", "1023"))
    >>> verify(path).findings[0].text
    'record 1 was changed, or is what a crash left of a write: opening the log mends that'
    """
    path = Path(path)
    beside = read_head(head_path(path))
    everyone = [*([beside] if beside else []), *heads]
    walk = _Walk({head.seq for head in everyone}, keys)
    try:
        with path.open("rb") as file:
            for raw in file:
                walk.read(raw)
    except OSError as error:
        raise files.trouble(error, path) from error
    walk.end()
    notes = list(walk.notes)
    for head in everyone:
        walk.found += _against(head, walk, keys)
    if beside is None:
        notes.append(f"there is no {head_path(path).name}: records cut off at the end would not be found")
    if not keys:
        notes.append("no key was given: signatures were not looked at")
    last = Head(walk.log, walk.expected - 1, walk.before, walk.size_bytes) if walk.records else None
    signed = next((head for head in everyone if last and head[:3] == last[:3]), last)
    found = sorted(set(walk.found), key=lambda each: (each.line == 0, *each))
    return Verdict(walk.records, tuple(found), tuple(notes), signed)


class _Walk:
    """A reader's place in the log: which record should come, and which bad lines wait for what explains them."""

    def __init__(self, wanted: set[int], keys: Sequence[str]) -> None:
        self.found: list[Finding] = []
        self.notes: list[str] = []
        self.hashes: dict[int, str] = {}  # of the records that heads tell of
        self.log, self.records, self.expected, self.before, self.size_bytes = "", 0, 0, GENESIS, 0
        self.unread = 0  # lines at the end that are no record
        self._wanted, self._keys = wanted, keys
        self._line, self._ended = 0, True
        self._bad: list[int] = []  # lines that are no record, since the last one that is
        self._gap, self._gap_bytes = hashlib.sha256(), 0
        self._sure = True  # the hash of the record before is known

    def read(self, raw: bytes) -> None:
        """The next line, its end included."""
        self._line += 1
        self.size_bytes += len(raw)
        self._ended = raw.endswith(b"\n")
        record = record_of(raw.removesuffix(b"\n"))
        if record is None:
            self._bad.append(self._line)
            self._gap.update(raw)
            self._gap_bytes += len(raw)
            return
        self._explain(record)
        self._place(record)

    def end(self) -> None:
        """What is left when no line comes any more."""
        self.unread = len(self._bad)
        for i, line in enumerate(self._bad):
            told = "was changed, or is what a crash left of a write: opening the log mends that"
            self.found.append(Finding(line, f"record {self.expected + i} {told}"))
        if not self._bad and not self._ended:
            self.found.append(Finding(self._line, "the last line has no end: a crash left it so, and opening the log mends that"))
        if self._line == 0:
            self.found.append(Finding(0, "the log is empty, and not even its first record is there"))

    def _explain(self, record: Record) -> None:
        """Bad lines, by the good record after them."""
        torn = (self._gap_bytes, self._gap.hexdigest())
        self._gap, self._gap_bytes, bad, self._bad = hashlib.sha256(), 0, self._bad, []
        if record["event"] == "mended" and record["seq"] == self.expected:
            if torn == (record.get("torn_bytes"), record.get("torn_sha256")):
                self.notes.append(f"record {record['seq']} mends {torn[0]} bytes that a crash left at {record['time']}")
                return
            self.found.append(Finding(self._line, f"record {record['seq']} mends other bytes than lie before it"))
        missing = record["seq"] - self.expected
        for i, line in enumerate(bad):
            if missing == 0:
                self.found.append(Finding(line, f"no record of this log: it was inserted before record {record['seq']}"))
            else:
                seq = self.expected + min(i, max(missing - 1, 0))
                self.found.append(Finding(line, f"record {seq} was changed, or is no record"))
        if 0 < missing <= len(bad):
            self.expected, self._sure = record["seq"], False

    def _place(self, record: Record) -> None:
        """A good record where it stands."""
        seq = record["seq"]
        if seq < self.expected:
            told = f"record {seq} stands after record {self.expected - 1}: inserted again, or moved"
            self.found.append(Finding(self._line, told))
            return
        if seq > self.expected:
            gone = f"record {self.expected} is" if seq == self.expected + 1 else f"records {self.expected} to {seq - 1} are"
            self.found.append(Finding(self._line, f"{gone} missing before record {seq}: removed, or moved"))
        elif self._sure and record["before"] != self.before:
            self.found.append(Finding(self._line, f"record {seq} does not follow the record before it: one of them was replaced"))
        if seq == 0:
            self.log = str(record.get("log", ""))
        if record["event"] == "anchor":
            self._anchor(record)
        self.records, self.expected, self.before, self._sure = self.records + 1, seq + 1, record["hash"], True
        if seq in self._wanted:
            self.hashes[seq] = record["hash"]

    def _anchor(self, record: Record) -> None:
        said = Head(self.log, record["seq"] - 1, record["before"], 0).statement()
        if self._keys and not any(verified(key, said, _unhex(record.get("signature"))) for key in self._keys):
            told = f"the signature of record {record['seq']} is of none of the keys: what lies before it was rewritten"
            self.found.append(Finding(self._line, told))


def _against(head: Head, walk: _Walk, keys: Sequence[str]) -> Iterator[Finding]:
    """A head, and what the log has where it tells of."""
    if keys and not any(verified(key, head.statement(), _unhex(head.signature)) for key in keys):
        yield Finding(0, f"the head at record {head.seq} is signed by none of the keys")
    if head.log != walk.log:
        yield Finding(0, f"the head at record {head.seq} is of the log {head.log}, not of {walk.log or 'this one'}")
    elif head.seq not in walk.hashes:
        if head.seq >= walk.expected + walk.unread:
            gone = f"record {head.seq} is" if walk.expected == head.seq else f"records {walk.expected} to {head.seq} are"
            yield Finding(0, f"the log was cut short: {gone} missing at its end, by the head at record {head.seq}")
        else:
            yield Finding(0, f"record {head.seq}, of which a head tells, is not there")
    elif walk.hashes[head.seq] != head.hash:
        yield Finding(0, f"record {head.seq} is not the one that the head tells of: the log was written anew")


def _unhex(signature: object) -> bytes:
    try:
        return bytes.fromhex(str(signature))
    except ValueError:
        return b""


def records(path: str | Path) -> Iterator[Record]:
    """The records of a log in their order, for showing; lines that are none are passed over: `verify` names them.

    Raises StoreError where the log can't be read.
    """
    try:
        with Path(path).open("rb") as file:
            for raw in file:
                record = record_of(raw.removesuffix(b"\n"))
                if record is not None:
                    yield record
    except OSError as error:
        raise files.trouble(error, Path(path)) from error


def head_text(head: Head) -> str:
    """A head as the one line that an auditor keeps.

    >>> head_text(Head("4f", 0, "ab", 9)).endswith("}")
    True
    """
    return json.dumps(head._asdict())
