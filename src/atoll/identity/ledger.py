"""What an authority remembers: the tokens it gave out, by hash, and the certificates it made, in one SQLite file.

Every change is one `BEGIN IMMEDIATE` transaction, so that of two claims of one token the second sees what the first did,
whether they come from two threads or two processes, and a kill in the middle leaves nothing half done.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from atoll.errors import IdentityError, VersionError
from atoll.identity.names import Role

_VERSION = 1
_WAIT_S = 30.0  # for another process's transaction, which takes milliseconds
_TABLES = """
CREATE TABLE token (
    id TEXT PRIMARY KEY, secret_sha256 BLOB NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL, expires INTEGER NOT NULL,
    used INTEGER, withdrawn INTEGER
) STRICT;
CREATE TABLE certificate (
    serial TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, starts INTEGER NOT NULL, expires INTEGER NOT NULL,
    cause TEXT NOT NULL, key_sha256 BLOB NOT NULL UNIQUE, pem BLOB NOT NULL, revoked INTEGER
) STRICT;
CREATE INDEX certificate_name ON certificate (name);
"""


class Invitation(NamedTuple):
    """A token, less its secret; times are None for what has not happened."""

    id: str
    secret_sha256: bytes
    name: str
    role: Role
    expires: datetime
    used: datetime | None = None
    withdrawn: datetime | None = None


class Issued(NamedTuple):
    """A certificate that was made; `cause` says for which token, or in the place of which serial."""

    serial: str
    name: str
    role: Role
    starts: datetime
    expires: datetime
    cause: str
    key_sha256: bytes
    pem: bytes
    revoked: datetime | None = None


class Ledger:
    """The file. It is opened anew for every transaction: nothing is shared between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def make(cls, path: Path) -> Ledger:
        """A new file, empty. Raises IdentityError where there is one."""
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.executescript(f"{_TABLES} PRAGMA user_version = {_VERSION};")
        except (OSError, sqlite3.Error) as error:
            raise IdentityError(f"{path} can't be made: {error}") from error
        return cls(path)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Book]:
        """All of the block, or, when it raises, nothing of it. Raises IdentityError where the file can't be used."""
        if not self.path.is_file():
            raise IdentityError(f"{self.path} is missing, without which no token or certificate is known; restore it")
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)) as database:
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version != _VERSION:
                    raise VersionError(f"{self.path} has version {version}, and this Atoll knows {_VERSION}: update Atoll")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield Book(database)
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise IdentityError(f"{self.path} can't be used: {error}") from error


class Book(NamedTuple):
    """The ledger within one transaction."""

    database: sqlite3.Connection

    def invite(self, invitation: Invitation) -> None:
        """Note a token."""
        self.database.execute("INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?)", _row(invitation))

    def invitation(self, id: str) -> Invitation | None:
        """The token of this id."""
        rows = self.database.execute("SELECT * FROM token WHERE id = ?", (id,)).fetchall()
        return _invitation(rows[0]) if rows else None

    def invitations(self) -> list[Invitation]:
        """Every token, those that expire first first."""
        return [_invitation(row) for row in self.database.execute("SELECT * FROM token ORDER BY expires, id")]

    def use(self, id: str, now: datetime) -> None:
        """Note that a token was used."""
        self.database.execute("UPDATE token SET used = ? WHERE id = ?", (_seconds(now), id))

    def withdraw(self, name: str, now: datetime) -> int:
        """Make the unused tokens of a name worthless; how many there were."""
        change = "UPDATE token SET withdrawn = ? WHERE name = ? AND used IS NULL AND withdrawn IS NULL"
        return self.database.execute(change, (_seconds(now), name)).rowcount

    def add(self, issued: Issued) -> None:
        """Note a certificate."""
        self.database.execute("INSERT INTO certificate VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", _row(issued))

    def certificates(self) -> list[Issued]:
        """Every certificate, by name, the oldest first."""
        return [_issued(row) for row in self.database.execute("SELECT * FROM certificate ORDER BY name, starts, serial")]

    def with_key(self, key_sha256: bytes) -> Issued | None:
        """The certificate of this public key."""
        rows = self.database.execute("SELECT * FROM certificate WHERE key_sha256 = ?", (key_sha256,)).fetchall()
        return _issued(rows[0]) if rows else None

    def with_serial(self, serial: str) -> Issued | None:
        """The certificate of this serial."""
        rows = self.database.execute("SELECT * FROM certificate WHERE serial = ?", (serial,)).fetchall()
        return _issued(rows[0]) if rows else None

    def role_of(self, name: str) -> Role | None:
        """The role that the name has, by a certificate or a token, whether they are still good or not."""
        both = "SELECT role FROM certificate WHERE name = ?1 UNION ALL SELECT role FROM token WHERE name = ?1 LIMIT 1"
        rows = self.database.execute(both, (name,)).fetchall()
        return cast(Role, rows[0][0]) if rows else None

    def revoke(self, serial: str, now: datetime) -> None:
        """Note that a certificate is taken back."""
        change = "UPDATE certificate SET revoked = ? WHERE serial = ? AND revoked IS NULL"
        self.database.execute(change, (_seconds(now), serial))


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _row(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_seconds(value) if isinstance(value, datetime) else value for value in values)


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _invitation(row: tuple[Any, ...]) -> Invitation:
    id, secret, name, role, expires, used, withdrawn = row
    return Invitation(id, secret, name, role, datetime.fromtimestamp(expires, UTC), _moment(used), _moment(withdrawn))


def _issued(row: tuple[Any, ...]) -> Issued:
    serial, name, role, starts, expires, cause, key, pem, revoked = row
    first, last = (datetime.fromtimestamp(each, UTC) for each in (starts, expires))
    return Issued(serial, name, role, first, last, cause, key, pem, _moment(revoked))
