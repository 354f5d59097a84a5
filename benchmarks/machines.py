"""Processes that stand for machines: their lines with the moments at which they came, and what memory they take together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ATOLL = (sys.executable, "-u", "-m", "atoll")
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # several of them share the machine


class Line(NamedTuple):
    """One line of a process's output."""

    came_s: float  # of time.monotonic
    text: str


class Machine:
    """A process in a folder; it lives until it ends by itself or is ended."""

    def __init__(self, folder: Path, command: Sequence[str], **environment: str) -> None:
        self.lines = list[Line]()
        self._came = threading.Condition()
        folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **THREADS, "COLUMNS": "200", "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, part: str, timeout_s: float) -> Line:
        """The first line that holds `part`. Raises RuntimeError where it does not come, or the process ends before."""
        deadline = time.monotonic() + timeout_s
        with self._came:
            while not (found := [line for line in self.lines if part in line.text]):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._reader.is_alive():
                    raise RuntimeError(f"{part!r} did not come within {timeout_s:g} s:\n{self.told()}")
                self._came.wait(min(left_s, 1.0))
            return found[0]

    def ended(self, timeout_s: float) -> int:
        """Its exit code. Raises RuntimeError where it has not ended in time."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self.process.args!r} did not end within {timeout_s:g} s:\n{self.told()}") from None
        self._reader.join(10)
        return code

    def told(self) -> str:
        """Its last lines."""
        return "".join(line.text for line in self.lines[-15:])

    def kill(self) -> None:
        """End it, and what it has started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            with self._came:
                self.lines.append(Line(time.monotonic(), text))
                self._came.notify_all()


@contextlib.contextmanager
def machines() -> Iterator[list[Machine]]:
    """A list of which nobody is left running afterwards."""
    started = list[Machine]()
    try:
        yield started
    finally:
        for each in started:
            each.kill()
