"""The database opens at the newest revision or says why not, and loses nothing on the way; SQLite, then PostgreSQL."""

import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from atoll.errors import ConfigError, MissingExtra, StoreError, VersionError
from atoll.store import tables
from atoll.store.database import MIGRATIONS, Database, _engine, _url
from atoll.store.runs import Store
from atoll.testing.store import check_store
from atoll.types import ClientId, Event

NEXT = '''
"""A revision that another release might add."""
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0002", "0001"
def upgrade():
    op.add_column("runs", sa.Column("owner", sa.Text, nullable=False, server_default="nobody"))
    if {fails}:
        op.execute("select no_such_function(1)")
'''


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/atoll.db"
        return
    url = request.getfixturevalue("postgres")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("create database one"))
    yield url.replace("/postgres?", "/one?")
    with admin.connect() as connection:
        connection.execute(text("drop database one with (force)"))
    admin.dispose()


def migrations(folder: Path, *, fails: bool = False) -> Path:
    shutil.copytree(MIGRATIONS, folder)
    (folder / "versions" / "0002_owner.py").write_text(NEXT.format(fails=fails))
    return folder


def test_the_migrations_lead_to_the_tables(where: str) -> None:
    database = Database(where)
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), tables.metadata) == []
    database.close()


def test_the_newest_revision_is_the_one_that_is_expected() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [tables.REVISION]


def test_the_laws_hold(where: str, tmp_path: Path) -> None:
    check_store(lambda: Store(tmp_path / "runs", where))


def test_every_number_of_a_run_is_kept_as_it_was(where: str, tmp_path: Path) -> None:
    odd = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan, "least": 5e-324, "most": sys.float_info.max, "w" * 300: 0.5}
    sent = {"bytes_up": 2.0**53, "bits/α": 0.1 + 0.2}
    with Store(tmp_path / "runs", where) as store, store.create("a", {}, seed=2**70, rounds=1) as run:
        run.sink.emit(Event("update", 0, "train", ClientId("north" * 100), odd))
        run.sink.emit(Event("reduced", 0, "train", metrics=sent, text="a" * 100_000))
        run.sink.emit(Event("round", 0))
        record = store.record(run.id)
        assert [(p.client, p.name, p.value.hex()) for p in record.series] == [
            *(("north" * 100, name, value.hex()) for name, value in odd.items()),
            *((None, name, value.hex()) for name, value in sent.items()),
        ]
        assert record.seed == 2**70
        assert record.incidents[0].text == "a" * 100_000


def test_an_older_database_is_upgraded_with_its_runs(where: str, tmp_path: Path) -> None:
    with Store(tmp_path / "runs", where) as store:
        store.create("old", {}, seed=0, rounds=1).close()
    database = Database(where, migrations=migrations(tmp_path / "new"), newest="0002")
    with database.read() as connection:
        assert connection.execute(text("select name, owner from runs")).all() == [("old", "nobody")]
    database.close()
    if where.startswith("sqlite"):
        with sqlite3.connect(tmp_path / "atoll.db.before-0001") as copy:
            assert copy.execute("select name from runs").fetchall() == [("old",)]


def test_an_upgrade_that_fails_leaves_the_old_database(where: str, tmp_path: Path) -> None:
    with Store(tmp_path / "runs", where) as store:
        store.create("old", {}, seed=0, rounds=1).close()
    with pytest.raises(StoreError, match="no_such_function"):
        Database(where, migrations=migrations(tmp_path / "new", fails=True), newest="0002")
    with Store(tmp_path / "runs", where) as store:
        assert [run.name for run in store.list()] == ["old"]
        with store.database.read() as connection, pytest.raises(StoreError, match="owner"), store.database._reported():
            connection.execute(text("select owner from runs"))


def test_a_database_of_a_newer_atoll_is_left_alone(where: str, tmp_path: Path) -> None:
    Database(where, migrations=migrations(tmp_path / "new"), newest="0002").close()
    with pytest.raises(VersionError, match=r"of a newer Atoll \(revision 0002\)"):
        Database(where)


def test_openers_at_the_same_moment_migrate_once(where: str) -> None:
    program = f"from atoll.store.database import Database; Database({where!r}).close()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", program]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(Database, where) for _ in range(4)]:
            future.result().close()
    assert [(process.communicate()[1], process.returncode) for process in started] == [("", 0)] * 3


def test_two_runs_write_at_once(where: str, tmp_path: Path) -> None:
    def work(name: str) -> int:
        with Store(tmp_path / "runs", where) as store, store.create(name, {}, seed=0, rounds=1) as run:
            for number in range(40):
                run.note(f"{number}", name)
            return len(store.record(run.id).notes)

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(work, ["a", "b", "c"])) == [40, 40, 40]


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "atoll.db").write_bytes(b"these are not the tables you look for" * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        Store(tmp_path)


@pytest.mark.parametrize("url", ["mysql://host/x", "oracle://host/x"])
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite or postgresql"):
        Database(url)


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        Database("://secret@host")


def test_a_postgresql_that_does_not_answer_is_told_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="can't be used") as told:
        Database("postgresql://me:secret@127.0.0.1:1/x?connect_timeout=2")
    assert "secret" not in str(told.value)
    assert "me:***@127.0.0.1" in str(told.value)


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"atoll\[postgres\]"):
        _engine(_url("postgresql://host/x"))
