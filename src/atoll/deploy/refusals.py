"""The coordinator's record of what it refused: which peer, when, what and why, in an audit log that a flood does not fill."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atoll.deploy.audit import AuditLog
from atoll.errors import StoreError
from atoll.types import Event

MOST_RECORDS = 100  # of one peer in a window; the others are counted
WINDOW_S = 3600.0
_MOST_PEERS = 1000  # each with a window of its own; the others share one
_MOST_CHARACTERS = 1000
_REJECTED = ("invalid", "not_finite")  # kinds of failures that an update is, not that its client had


@dataclass
class _Window:
    began_s: float
    written: int = 0
    unwritten: int = 0


class Refusals:
    """Writes to an audit log. What was not written of a peer, being too much or on a full disk, is told as a number later.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from atoll.deploy.verify import records
    >>> path = Path(tempfile.mkdtemp()) / "audit.jsonl"
    >>> refusals = Refusals(AuditLog(path), most=1)
    >>> for _ in range(3):
    ...     refusals.note("south", "Have trial-1", "south has no part in such a job")
    >>> refusals.close()
    >>> [(each["peer"], each.get("why") or each.get("unwritten")) for each in records(path) if each["event"] == "refused"]
    [('south', 'south has no part in such a job'), ('south', 2)]
    """

    def __init__(
        self,
        log: AuditLog,
        most: int = MOST_RECORDS,
        window_s: float = WINDOW_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._most, self._window_s, self._now = log, most, window_s, now
        self._windows: dict[str, _Window] = {}
        self._guard = threading.Lock()

    def note(self, peer: str, what: str, why: str) -> None:
        """A peer was refused something. `peer`: as its certificate says, "" where it has none that counts."""
        with self._guard:
            window = self._window(peer)
            if window.written >= self._most:
                window.unwritten += 1
                return
            window.written += 1
            self._write(window, peer, what=_plain(what), why=_plain(why))

    def sink(self, job: str) -> Rejected:
        """The sink of one job, which notes each answer that was rejected."""
        return Rejected(self, job)

    def close(self) -> None:
        """Tell what was only counted."""
        with self._guard:
            for peer, window in self._windows.items():
                self._tell(peer, window)

    def _window(self, peer: str) -> _Window:
        if peer not in self._windows and len(self._windows) >= _MOST_PEERS:
            peer = ""
        window = self._windows.setdefault(peer, _Window(self._now()))
        if self._now() - window.began_s >= self._window_s:
            self._tell(peer, window)
            window.began_s, window.written = self._now(), 0
        return window

    def _tell(self, peer: str, window: _Window) -> None:
        if window.unwritten:
            count, window.unwritten = window.unwritten, 0
            self._write(window, peer, unwritten=count)

    def _write(self, window: _Window, peer: str, **told: str | int) -> None:
        try:
            self._log.append("refused", peer=_plain(peer), **told)
        except StoreError:  # who is refused shall not learn of our disk; the number is told when there is room
            window.unwritten += int(told.get("unwritten", 1))


class Rejected:
    """A sink: what the answers of a job's clients were rejected for."""

    def __init__(self, refusals: Refusals, job: str) -> None:
        self._refusals, self._job = refusals, job

    def emit(self, event: Event) -> None:
        """Note a failure that is the answer's own."""
        if event.kind == "failure" and event.text.startswith(_REJECTED):
            what = f"the answer to {event.work!r} in round {event.round + 1} of {self._job}"
            self._refusals.note(str(event.client), what, event.text)


def refusals_in(folder: Path) -> Refusals:
    """The record of a coordinator whose folder this is. Raises StoreError where its log was changed, or can't be written."""
    return Refusals(AuditLog(folder / "audit.jsonl"))


def _plain(text: str) -> str:
    """What a line of a log may hold: a peer may have written it."""
    return "".join(each if each.isprintable() else "?" for each in text[:_MOST_CHARACTERS])
