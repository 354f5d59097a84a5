"""One run, open for work: its checkpoints, its journal, its client memory, its sink."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import func, select

from atoll.errors import AtollError, ConfigError, StoreError
from atoll.store import checkpoints, lock, models, tables
from atoll.store.database import Database
from atoll.store.journal import FileJournal
from atoll.store.keys import Keys
from atoll.store.memories import FileMemories
from atoll.store.places import Blobs, Folder
from atoll.store.sealed import SealedBlobs, lay
from atoll.store.sinks import DatabaseSink, clean
from atoll.types import Event

_ENDS = ("finished", "failed", "interrupted")


class Run:
    """One run, open for work in this process alone. `with run:` marks it running, and records how the block ended."""

    def __init__(
        self, id: str, folder: Path, database: Database, held: lock.Lock, blobs: Blobs | None = None, keys: Keys | None = None
    ) -> None:
        """`blobs`: where checkpoints and the model are kept, else in the folder. With `keys` all that is kept is sealed."""
        self.id = id
        self.folder = folder
        kept = blobs or Folder(folder)
        self.blobs: Blobs = SealedBlobs(kept, keys, id) if keys else kept
        self.journal = FileJournal(folder / "journal", keep=checkpoints.KEEP - 1, lay=lay(keys, f"{id}/journal"))
        self.memories = FileMemories(folder / "memory", lay=lay(keys, f"{id}/memory"))
        self.sink = DatabaseSink(database, id)
        self._database = database
        self._lock = held
        self._ended = False

    def start(self) -> None:
        """Mark the run as running; the first time, note when."""
        self._ended = False
        started = func.coalesce(tables.runs.c.started, _now())
        self._update(status="running", started=started, finished=None, error="")

    def checkpoint(self, round: int, state: object) -> int:
        """Keep the state after `round` finished rounds; return its size in bytes.

        On return the run can be resumed from here, even after a power cut. What is to be recorded of the rounds so
        far is emitted before, since a resumed run does not come back to it. Raises StoreError where it can't be written.
        """
        self.sink.flush()
        extra = {"place": self.sink.place, "elapsed_s": self.sink.elapsed_s}
        size = checkpoints.save(self.blobs, round, state, extra)
        self._update(rounds_done=round)
        return size

    def latest(self, like: object) -> tuple[int, Any] | None:
        """(rounds finished, state) of the newest whole checkpoint, None where there is none; the run goes on from there.

        What was recorded of later rounds is forgotten, since it comes again; client memory of updates in the journal
        is committed, other proposals are dropped. A damaged checkpoint is passed over with a warning in the record.
        Raises StoreError where all are damaged or `like` has another structure.
        """
        found = checkpoints.latest(self.blobs, like)
        done, extra = (found.round, found.extra) if found else (0, {})
        self.sink.rewind(done, int(extra.get("place", 0)), float(extra.get("elapsed_s", 0.0)))
        self._update(rounds_done=done)
        kept = [round for round in self.journal.rounds() if round >= done]
        self.memories.recover(itertools.chain.from_iterable(self.journal.accepted(round) for round in kept))
        for reason in found.passed_over if found else ():
            self.sink.emit(Event("warning", done, text=f"went on from round {done}: {reason}"))
        self.sink.flush()
        return (found.round, found.state) if found else None

    def note(self, title: str, text: str) -> None:
        """Keep a text with the run; one of the same title takes its place."""
        title = clean(title)[:200]
        mine = tables.notes.c.run == self.id
        with self._database.write() as connection:
            count = connection.execute(select(func.max(tables.notes.c.place)).where(mine)).scalar() or 0
            connection.execute(tables.notes.delete().where(mine, tables.notes.c.title == title))
            connection.execute(tables.notes.insert(), {"run": self.id, "title": title, "place": count + 1, "text": clean(text)})

    def noted(self, title: str) -> str:
        """The text of that title, empty where there is none."""
        mine = (tables.notes.c.run == self.id) & (tables.notes.c.title == clean(title)[:200])
        with self._database.read() as connection:
            return connection.execute(select(tables.notes.c.text).where(mine)).scalar() or ""

    def keep_model(self, save: Callable[[Path], object]) -> str:
        """Keep the files that `save` writes to a folder as the run's model; return where it is.

        Where they are sealed or go to a URL, they are written to the system's folder for temporary files first.
        """
        if isinstance(self.blobs, Folder):
            save(self.blobs.folder / models.FOLDER)
        else:
            with tempfile.TemporaryDirectory(prefix="atoll-") as made:
                save(Path(made))
                models.keep(Path(made), self.blobs)
        return f"{self.blobs}/{models.FOLDER}"

    def fetch_model(self, target: Path) -> None:
        """Write the run's model to a folder, opened where it is sealed.

        Raises UnknownName where the run has none yet, StoreError where it is damaged or can't be written.
        """
        models.fetch(self.blobs, target)

    def finish(self, status: str, error: str = "") -> None:
        """Record how the run ended: "finished", "failed" or "interrupted". A finished run needs its journal no more."""
        if status not in _ENDS:
            raise ConfigError(f"a run ends as one of {', '.join(_ENDS)}, not as {status!r}")
        self.sink.flush()
        self._update(status=status, error=clean(error), finished=_now())
        self._ended = True
        if status == "finished":
            shutil.rmtree(self.journal.folder, ignore_errors=True)  # what can't be removed only takes room

    def close(self) -> None:
        """Let another process have the run."""
        self._lock.release()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # An error that ends the run matters more than one met in recording it.
        quietly = contextlib.suppress(StoreError) if error is not None else contextlib.nullcontext()
        try:
            with quietly:
                if error is None and not self._ended:
                    self.finish("finished" if self._all_done() else "interrupted")
                elif isinstance(error, Exception):
                    self.finish("failed", str(error) if isinstance(error, AtollError) else f"{type(error).__name__}: {error}")
                elif error is not None:
                    self.finish("interrupted")
        finally:
            self.close()

    def _all_done(self) -> bool:
        with self._database.read() as connection:
            row = connection.execute(select(tables.runs).where(tables.runs.c.id == self.id)).one()
        return bool(row.rounds_done >= row.rounds)

    def _update(self, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(tables.runs.update().where(tables.runs.c.id == self.id).values(**values))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
