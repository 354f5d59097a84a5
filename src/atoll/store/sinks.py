"""Where a stored run's events go: the runs database, in batches."""

from __future__ import annotations

import math
import re
import time
from typing import Any

from sqlalchemy import and_, func, select

from atoll.store.database import Database
from atoll.store.tables import incidents, points
from atoll.types import Event

_BATCH_S = 0.5  # a page that shows the run is at most this old


class DatabaseSink:
    """Numbers become points, texts become incidents; written when a round ends, and every half second before that.

    >>> import tempfile
    >>> from atoll.store.runs import Store
    >>> with Store(tempfile.mkdtemp()) as store, store.create("a", {}, seed=0, rounds=1) as run:
    ...     run.sink.emit(Event("update", 0, "train", "north", {"loss": 0.5}))
    ...     run.sink.emit(Event("round", 0))
    ...     store.record("last").by_client("train", "loss")
    {'north': [(0, 0.5)]}
    """

    def __init__(self, database: Database, run: str) -> None:
        self._database = database
        self._run = run
        self._points: list[dict[str, Any]] = []
        self._incidents: list[dict[str, Any]] = []
        self._place = 0  # how much has been recorded
        self._offset_s = 0.0  # seconds of running before this process
        self._began = self._flushed = time.monotonic()

    @property
    def place(self) -> int:
        """How many points and incidents the run has recorded so far: a checkpoint notes it, `rewind` goes back to it."""
        return self._place

    @property
    def elapsed_s(self) -> float:
        """Seconds of running, those of earlier processes included."""
        return self._offset_s + time.monotonic() - self._began

    def emit(self, event: Event) -> None:
        """Record the event. Raises StoreError where the database can't be written."""
        now = self.elapsed_s
        common = {"run": self._run, "round": event.round, "work": clean(event.work), "elapsed_s": now}
        common["client"] = None if event.client is None else clean(event.client)
        for name, value in event.metrics.items():
            number = None if math.isnan(value) else float(value)
            self._points.append({**common, "place": self._next(), "name": clean(name), "value": number})
        if event.text or event.kind in {"failure", "late"}:
            self._incidents.append({**common, "place": self._next(), "kind": event.kind, "text": clean(event.text)})
        if event.kind == "round" or time.monotonic() - self._flushed > _BATCH_S:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered, in one transaction."""
        if self._points or self._incidents:
            with self._database.write() as connection:
                if self._points:
                    connection.execute(points.insert(), self._points)
                if self._incidents:
                    connection.execute(incidents.insert(), self._incidents)
            self._points, self._incidents = [], []
        self._flushed = time.monotonic()

    def rewind(self, round: int, place: int, elapsed_s: float) -> None:
        """Forget what was recorded of `round` and later ones after the checkpoint that noted `place`: it will come again.

        What was recorded before that checkpoint stays, whatever its round, and so does what came after it but
        belongs to an earlier round.
        """
        self._points, self._incidents, last = [], [], 0
        with self._database.write() as connection:
            for table in (points, incidents):
                again = and_(table.c.run == self._run, table.c.round >= round, table.c.place > place)
                connection.execute(table.delete().where(again))
                found = connection.execute(select(func.max(table.c.place)).where(table.c.run == self._run)).scalar()
                last = max(last, found or 0)
        self._place, self._offset_s = last, elapsed_s
        self._began = self._flushed = time.monotonic()

    def _next(self) -> int:
        self._place += 1
        return self._place


def clean(text: str) -> str:
    """The text without what a database refuses: NUL, and halves of characters. A model may write either.

    >>> clean("a" + chr(0) + "b")
    'a\\ufffdb'
    """
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)
