"""Two ends of a deployment as light processes: forked from one that has imported everything and has not begun gRPC."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing as mp
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from atoll.identity import authority, credentials, enrolment, tokens
from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.values import Credentials, Limits

JOB = "benchmark"
_FORK = mp.get_context("fork")


class Trust(NamedTuple):
    """Certificates of one authority; every site here shows the same one, and says its own name."""

    hub: Credentials
    site: Credentials


class Child(NamedTuple):
    """A forked process and the line to it."""

    process: Any
    line: Connection


def fork(work: Callable[..., None], *arguments: object) -> Child:
    """Call `work(line, *arguments)` in a process of its own."""
    here, there = _FORK.Pipe()
    process = _FORK.Process(target=work, args=(there, *arguments), daemon=True)
    gc.freeze()  # the children's collector does not touch, and so copy, what they share
    process.start()
    there.close()
    return Child(process, here)


def told(child: Child, timeout_s: float = 600.0) -> Any:
    """What a child says next; its death is an error."""
    if not child.line.poll(timeout_s):
        raise RuntimeError(f"nothing was heard for {timeout_s:g} s")
    return child.line.recv()


def end(*children: Child) -> None:
    for each in children:
        each.process.join(20.0)
        each.process.kill()


def trusted(folder: Path) -> Trust:
    """A new authority, its coordinator and one site."""
    made = authority.create(folder / "pki", "benchmark.example", ["localhost"])
    csr = credentials.prepare(folder / "site", "site")
    signed = enrolment.enrol(made, tokens.invite(made, "site"), csr)
    held = credentials.accept(folder / "site", "site", authority.pem(signed), made.ca_pem, sha256=made.sha256)
    own = credentials.of_coordinator(made)
    return Trust(
        Credentials(own.key_pem, own.certificate_pem, own.ca_pem), Credentials(held.key_pem, held.certificate_pem, held.ca_pem)
    )


@contextlib.contextmanager
def hub_at(folder: Path, trust: Trust | None, limits: Limits = Limits()) -> Iterator[Hub]:  # noqa: B008
    who = (lambda shown: "site") if trust else None
    hub = Hub("localhost:0", trust.hub if trust else None, folder, who=who, insecure=trust is None, limits=limits)
    try:
        yield hub
    finally:
        hub.stop(0.5)


@contextlib.contextmanager
def link_to(address: str, folder: Path, site: str, trust: Trust | None) -> Iterator[Link]:
    link = Link(address, trust.site if trust else None, site, folder, insecure=trust is None)
    try:
        yield link
    finally:
        link.close()


class Peak:
    """The most memory of its own (anonymous: page cache does not count) that a process has held, sampled from outside."""

    def __init__(self, pid: int, every_s: float = 0.02) -> None:
        self.floor_mib = self.most_mib = anonymous_mib(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(pid, every_s), daemon=True)
        self._thread.start()

    def _watch(self, pid: int, every_s: float) -> None:
        while not self._over.wait(every_s):
            with contextlib.suppress(OSError):
                self.most_mib = max(self.most_mib, anonymous_mib(pid))

    @property
    def grown_mib(self) -> float:
        """Above what it held when this began; the watching ends."""
        self._over.set()
        self._thread.join()
        return self.most_mib - self.floor_mib


def anonymous_mib(pid: int) -> float:
    """RssAnon, which a forked process shares with nobody but for what it has not written to since the fork."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def cpu_s() -> float:
    """Processor seconds of this process."""
    spent = os.times()
    return spent.user + spent.system
