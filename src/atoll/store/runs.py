"""The runs that a folder holds: made, opened, listed and read back. Reading them does without torch."""

from __future__ import annotations

import builtins
import difflib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Row, select

from atoll.errors import ConfigError, StoreError, UnknownName, unknown
from atoll.store import files, lock, machine, places, tables
from atoll.store.database import Database
from atoll.store.keys import Keys
from atoll.store.record import Incident, Note, Point, Record, Summary
from atoll.store.sinks import clean

if TYPE_CHECKING:
    from atoll.store.run import Run

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: in order, and none that is read for another
_BLOBS = "blobs"  # the file in a run's folder that says where its blobs are


class Store:
    """A folder of runs and its database. It owns a connection: close it, or use it in a `with`.

    >>> import tempfile
    >>> with Store(tempfile.mkdtemp()) as store:
    ...     with store.create("digits", {"lr": 0.1}, seed=0, rounds=1) as run:
    ...         _ = run.checkpoint(1, {"lr": 0.1})
    ...         run.finish("finished")
    ...     [(each.name, each.status) for each in store.list()]
    [('digits', 'finished')]
    """

    def __init__(
        self, where: str | Path = "runs", database: str | None = None, *, blobs: str | None = None, keys: Keys | None = None
    ) -> None:
        """Open the folder, making it where it is absent. `database` is a URL; without one it is <folder>/atoll.db.

        `blobs`: where new runs keep checkpoints and models, a folder or any URL of fsspec; without it, each in its
        folder here. `keys` seal what runs keep; without them, those of ATOLL_STORE_KEY or ATOLL_STORE_KEY_FILE, if set.

        Raises StoreError where either can't be used, VersionError where a newer Atoll made the database, ConfigError
        for a key that is none.
        """
        self.blobs = str(places.opened(blobs)) if blobs else None
        self.keys = keys or Keys.from_environment()
        self.folder = files.make_folder(Path(where).absolute())
        self.database = Database(database or self.folder / "atoll.db")

    def create(
        self,
        name: str,
        config: Mapping[str, Any],
        seed: int,
        rounds: int,
        *,
        versions: Mapping[str, str] | None = None,
        environment: str | None = None,
    ) -> Run:
        """A new run, locked by this process. Its id is readable and sorts by the time at which it was made."""
        now = datetime.now(UTC)
        folder = self._new_folder(name, now)
        held = lock.Lock(folder / "lock", f"the run {folder.name}")
        row = {
            "id": folder.name,
            "name": clean(name)[:100],
            "status": "created",
            "seed": str(seed),
            "rounds": rounds,
            "rounds_done": 0,
            "config": _plain(config),
            "versions": dict(machine.versions() if versions is None else versions),
            "environment": machine.environment() if environment is None else environment,
            "created": _iso(now),
            "error": "",
            "folder": str(folder),
        }
        try:
            if self.blobs:
                with files.replacing(folder / _BLOBS, 0) as file:
                    file.write(self.blobs.encode())
            run = self._run(folder.name, folder, held)
            with self.database.write() as connection:
                connection.execute(tables.runs.insert(), row)
        except BaseException:
            held.release()
            raise
        return run

    def open(self, which: str) -> Run:
        """The run with that id, with an id that begins so, or, for "last", the one made last; locked by this process.

        Raises UnknownName, ConfigError where several ids begin so, StoreError where another process has it.
        """
        row = self._find(which)
        folder = self._place(row)
        if not folder.is_dir():
            raise StoreError(f"the folder {folder} of the run {row.id} is not here; open it on the machine that has it")
        held = lock.Lock(folder / "lock", f"the run {row.id}")
        try:
            return self._run(row.id, folder, held)
        except BaseException:
            held.release()
            raise

    def record(self, which: str) -> Record:
        """All that is known of a run, named as for `open`; it may be running."""
        row = self._find(which)
        with self.database.read() as connection:
            series, incidents, notes = (
                connection.execute(select(table).where(table.c.run == row.id).order_by(table.c.place)).all()
                for table in (tables.points, tables.incidents, tables.notes)
            )
        return Record(
            **{name: getattr(row, name) for name in ("id", "name", "rounds", "config", "versions", "environment")},
            **{name: getattr(row, name) for name in ("created", "started", "finished", "error")},
            status=self._status(row),
            seed=int(row.seed),
            folder=str(self._place(row)),
            series=tuple(
                Point(p.round, p.work, p.client, p.name, math.nan if p.value is None else p.value, p.elapsed_s) for p in series
            ),
            incidents=tuple(Incident(i.round, i.work, i.client, i.kind, i.text, i.elapsed_s) for i in incidents),
            notes=tuple(Note(n.title, n.text) for n in notes),
        )

    def find(self, which: str) -> str:
        """The id of the run that is meant, as for `open`."""
        return str(self._find(which).id)

    def incidents(self, id: str, kind: str, most: int) -> builtins.list[Incident]:
        """The last incidents of a kind, the newest last, of the run with that id; read without its numbers."""
        table = tables.incidents
        mine = select(table).where(table.c.run == id, table.c.kind == kind).order_by(table.c.place.desc()).limit(most)
        with self.database.read() as connection:
            found = connection.execute(mine).all()
        return [Incident(i.round, i.work, i.client, i.kind, i.text, i.elapsed_s) for i in reversed(found)]

    def reconfigure(self, id: str, config: Mapping[str, Any]) -> None:
        """Record that the run with that id goes on with another configuration."""
        with self.database.write() as connection:
            connection.execute(tables.runs.update().where(tables.runs.c.id == id).values(config=_plain(config)))

    def list(self) -> builtins.list[Summary]:
        """Every run in one line each, the newest first."""
        with self.database.read() as connection:
            rows = connection.execute(select(tables.runs).order_by(tables.runs.c.created.desc(), tables.runs.c.id.desc())).all()
        names = ("id", "name", "rounds", "rounds_done", "created", "started", "finished", "error")
        return [
            Summary(
                **{name: getattr(row, name) for name in names},
                status=self._status(row),
                seed=int(row.seed),
                folder=str(self._place(row)),
            )
            for row in rows
        ]

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_folder(self, name: str, now: datetime) -> Path:
        # Tenths of a second of the day in four digits; a tick that is taken gives way to the next.
        tick = int((now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds() * 10)
        slug = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "run"
        for serial in itertools.count(tick):
            digits = "".join(_DIGITS[serial >> shift & 31] for shift in (15, 10, 5, 0))
            folder = self.folder / f"{slug}-{now:%Y%m%d}-{digits}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise files.trouble(error, folder) from error
            return folder
        raise AssertionError("count() does not end")

    def _find(self, which: str) -> Row[Any]:
        runs = tables.runs
        newest = select(runs).order_by(runs.c.created.desc(), runs.c.id.desc())
        with self.database.read() as connection:
            if which == "last":
                found: Sequence[Row[Any]] = connection.execute(newest.limit(1)).all()
            else:
                found = connection.execute(newest.where(runs.c.id.startswith(which, autoescape=True))).all() if which else []
                found = [row for row in found if row.id == which] or found
            ids = [] if len(found) == 1 else connection.execute(newest.with_only_columns(runs.c.id)).scalars().all()
        if len(found) == 1:
            return found[0]
        if not ids:
            raise UnknownName(f"there are no runs in {self.folder}; start one with `atoll run`")
        if found:
            raise ConfigError(f"{len(found)} runs begin with {which!r}: {_some(row.id for row in found)}; give more of the id")
        near = difflib.get_close_matches(which, ids, n=3, cutoff=0.5)
        raise unknown("run", which, {*near, *ids[:10]})

    def _run(self, id: str, folder: Path, held: lock.Lock) -> Run:
        from atoll.store.run import Run  # torch, which a list of runs does not need

        told = folder / _BLOBS  # a run's blobs stay where it was made with
        kept = places.opened(f"{told.read_text()}/{id}") if told.exists() else None
        return Run(id, folder, self.database, held, kept, self.keys)

    def _place(self, row: Row[Any]) -> Path:
        here = self.folder / str(row.id)  # the folder of runs may have been moved, its database with it
        return here if here.is_dir() else Path(row.folder)

    def _status(self, row: Row[Any]) -> str:
        """As recorded; but a run that says it is running, and that nobody holds, was killed."""
        file = self._place(row) / "lock"
        gone = row.status == "running" and file.exists() and not lock.taken(file)
        return "interrupted" if gone else str(row.status)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _some(ids: Any) -> str:
    first = list(itertools.islice(ids, 4))
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")


def _plain(config: Mapping[str, Any]) -> Any:
    """What JSON can hold of a configuration: paths and the like as text, numbers that are not finite too."""

    def spell(x: Any) -> Any:
        if isinstance(x, float) and not math.isfinite(x):
            return str(x)
        if isinstance(x, Mapping):
            return {clean(str(k)): spell(v) for k, v in x.items()}
        if isinstance(x, list | tuple | set | frozenset):
            return [spell(v) for v in x]
        return x if x is None or isinstance(x, bool | int | float) else clean(str(x))

    return json.loads(json.dumps(spell(config)))
