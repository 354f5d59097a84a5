"""The runs database: SQLite in a file by default, PostgreSQL by URL; opened at the newest revision or not at all.

A migration runs inside one transaction and under a lock that all openers respect, so that two processes that start
together migrate once, and a process that dies half-way leaves the old schema. A SQLite file that is about to be
changed is copied beside itself first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError

from atoll.errors import ConfigError, StoreError, VersionError, missing_extra
from atoll.store.tables import REVISION

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).with_name("migrations")
_BUSY_S = 30.0  # how long a writer waits for another process's transaction
_LOCK = 4_207_849_484  # any number that nobody else uses: the key of PostgreSQL's advisory lock


class Database:
    """An open database. It owns connections: close it.

    >>> import tempfile
    >>> database = Database(tempfile.mkdtemp() + "/atoll.db")
    >>> with database.read() as connection:
    ...     connection.exec_driver_sql("select count(*) from runs").scalar()
    0
    >>> database.close()
    """

    def __init__(self, where: str | Path, *, migrations: Path = MIGRATIONS, newest: str = REVISION) -> None:
        """Open a file or a URL, making or upgrading the tables.

        Raises ConfigError for a URL that is none, StoreError where it can't be opened, VersionError where a newer
        Atoll has upgraded it.
        """
        self.url = _url(where)
        self._engine = _engine(self.url)
        try:
            self._upgrade(migrations, newest)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to read from. Raises StoreError where the database can't be reached."""
        with self._reported(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed when the block ends well. Raises StoreError where it can't be."""
        with self._reported(), self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _upgrade(self, migrations: Path, newest: str) -> None:
        with self.read() as connection:
            revision = _revision(connection)
        if revision == newest:
            return  # without Alembic, which takes as long to import as all the rest
        with self._reported(), self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            if self.url.get_backend_name() == "postgresql":
                connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            revision = _revision(connection)  # another process may have done it meanwhile
            if revision != newest:
                self._migrate(connection, revision, migrations)

    def _migrate(self, connection: Connection, revision: str | None, migrations: Path) -> None:
        from alembic import command
        from alembic.script import ScriptDirectory

        config = _config(connection, migrations)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if revision is not None and revision not in known:
            raise VersionError(f"{self} is of a newer Atoll (revision {revision}); upgrade atoll, or name another database")
        if revision is not None and self.url.get_backend_name() == "sqlite":
            _copy(connection, Path(str(self.url.database)), revision)
        command.upgrade(config, "head")

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            told = str(cause).strip().partition("\n")[0]
            mend = "see that it is a runs database"
            if isinstance(error, OperationalError):
                here = self.url.get_backend_name() == "sqlite"
                mend = "make room or end what holds it" if here else "see that the server runs, and that the URL is right"
            raise StoreError(f"{self} can't be used: {told}; {mend}") from error

    def __str__(self) -> str:
        place = self.url.database if self.url.get_backend_name() == "sqlite" else self.url.render_as_string(hide_password=True)
        return f"the database {place}"


def _url(where: str | Path) -> URL:
    if "://" not in str(where):
        return URL.create("sqlite", database=str(where))
    try:
        url = make_url(str(where))
    except ArgumentError as error:
        raise ConfigError("the database is not a URL such as postgresql+psycopg://user@host/name; mend it") from error
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise ConfigError(f"runs are kept in sqlite or postgresql, not in {url.get_backend_name()!r}; give such a URL")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "sqlite":
            engine = create_engine(url, connect_args={"timeout": _BUSY_S, "check_same_thread": False})
            event.listen(engine, "connect", _prepare)
            event.listen(engine, "begin", _begin)
            return engine
        return create_engine(url, pool_pre_ping=True)
    except NoSuchModuleError as error:
        raise ConfigError(f"no driver is called {url.drivername!r}; use postgresql+psycopg://") from error
    except ImportError:
        raise missing_extra("psycopg", "postgres", "PostgreSQL databases") from None


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: the driver's own says it too late, and never for DDL
    cursor = connection.cursor()
    try:
        for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {setting}")
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    # A writer takes its lock at once, and so waits its turn; one that upgrades from reading would be refused.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql("select version_num from alembic_version").scalar()
    return found


def _config(connection: Connection, migrations: Path) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _copy(connection: Connection, file: Path, revision: str) -> None:
    """Keep the database as it was; the lock is held, so nobody writes meanwhile."""
    import sqlite3

    copy = file.with_name(f"{file.name}.before-{revision}")
    with contextlib.closing(sqlite3.connect(file)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)
