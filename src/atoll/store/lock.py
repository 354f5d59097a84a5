"""One process a run: a lock on a file in the run's folder, which the operating system drops when the process dies."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

from atoll.errors import StoreError
from atoll.store import files

# The system's locks are between processes; between the threads of this one it is for us to keep apart. (flock would
# do both, but a forked worker would hold it on after its parent's death.)
_MINE: set[Path] = set()
_GUARD = threading.Lock()


class Lock:
    """A held lock; `release` it, or let the process end.

    >>> import tempfile
    >>> held = Lock(Path(tempfile.mkdtemp()) / "lock", "the run a-1")
    >>> taken(held.path)
    True
    >>> held.release()
    >>> taken(held.path)
    False
    """

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock. Raises StoreError with the process that has it."""
        self.path = path.absolute()
        with _GUARD:
            if self.path in _MINE:
                raise _held(what, str(os.getpid()))
            try:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise files.trouble(error, self.path) from error
            if not _try(self._file):
                pid = os.read(self._file, 32).decode("ascii", "replace").strip()
                os.close(self._file)
                raise _held(what, pid or "unknown")
            _MINE.add(self.path)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; twice is as good as once."""
        with _GUARD:
            if self.path in _MINE:
                _MINE.discard(self.path)
                os.close(self._file)


def taken(path: Path) -> bool:
    """A living process holds the lock."""
    path = path.absolute()
    with _GUARD:
        if path in _MINE:  # to open and close the file here would drop our own lock
            return True
        try:
            file = os.open(path, os.O_RDWR)
        except OSError:
            return False
        try:
            return not _try(file, patience_s=0.0)
        finally:
            os.close(file)


def _try(file: int, patience_s: float = 0.2) -> bool:
    """Take the lock, with patience for somebody who only looks whether it is taken."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)


def _held(what: str, pid: str) -> StoreError:
    return StoreError(f"{what} is in use by process {pid}; wait until it ends, or end it")
