"""A subprocess with an end: bounded in time, its whole family's memory sampled from outside, nobody of it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MARK = "PEERS_FAMILY"  # an environment variable that all descendants inherit, those that leave the session included
SAMPLE_S = 0.1
SHARE = 0.02  # of one core at most: sampling must not slow what it watches
KEPT_LINES = 15


class Watched(NamedTuple):
    """How a command ended."""

    code: int | None  # None: it took too long
    seconds: float
    peak_bytes: int  # of the sum over the family of proportional set sizes; 0 where the system does not tell
    last_lines: str


def watch(command: Sequence[str], environment: Mapping[str, str], folder: Path, timeout_s: float) -> Watched:
    """Run `command` in `folder`; afterwards, whatever happened, kill all that it started."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    name, value = mark.split("=")
    log = folder / "output.txt"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, name: value},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        family = Family(process.pid, mark)
        ended, peak = threading.Event(), [0]
        sampler = threading.Thread(target=_sample, args=(family, ended, peak), daemon=True)
        sampler.start()
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout_s)
        finally:
            seconds = time.monotonic() - began
            ended.set()
            sampler.join()
            family.kill()
            process.wait()
    lines = log.read_text(errors="replace").splitlines()
    return Watched(code, seconds, peak[0], "\n".join(lines[-KEPT_LINES:]))


class Family:
    """A process and all that descend from it: by parent, by session, by the mark in the environment, once seen for good."""

    def __init__(self, pid: int, mark: str) -> None:
        self._root, self._mark = pid, mark.encode()
        self._seen: dict[int, str] = {}  # pid -> start time, as pids are given again

    def members(self) -> list[int]:
        """Who is alive."""
        alive: dict[int, tuple[int, int, str]] = {}
        for entry in Path("/proc").glob("[0-9]*") if Path("/proc").is_dir() else ():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                alive[int(entry.name)] = (int(fields[1]), int(fields[3]), fields[19])
        ours = {pid for pid, (_, session, start) in alive.items() if session == self._root or self._seen.get(pid) == start}
        ours |= {pid for pid in alive if pid not in ours and self._marked(pid)}
        grown = -1
        while grown != len(ours):
            grown = len(ours)
            ours |= {pid for pid, (parent, _, _) in alive.items() if parent in ours or pid == self._root}
        self._seen = {pid: alive[pid][2] for pid in ours}
        return sorted(ours)

    def bytes(self) -> int:
        """Memory of all, a page that n share counted as 1/n at each (Pss)."""
        total = 0
        for pid in self.members():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    def kill(self) -> None:
        """End all, those too that are started meanwhile."""
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._root, signal.SIGKILL)
            alive = self.members()
            for pid in alive:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not alive:
                return
            time.sleep(0.05)

    def _marked(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


def _sample(family: Family, ended: threading.Event, peak: list[int]) -> None:
    pause = 0.0
    while not ended.wait(pause):
        began = time.thread_time()
        peak[0] = max(peak[0], family.bytes())
        pause = max(SAMPLE_S, (time.thread_time() - began) / SHARE)
