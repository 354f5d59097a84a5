"""Two ends on loopback, and a line between them that can be cut or damaged after so many bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.values import Invited, Limits, Offered, SiteEvent
from atoll.types import Answer, Assignment, ClientId, Update

QUICK = Limits(retry_s=0.01, ping_s=5.0)
JOB, NORTH, SOUTH = "job", ClientId("north"), ClientId("south")
SOON_S = 30.0  # for what takes milliseconds on an idle machine


class Proxy:
    """A line to `target`. Each connection is cut when `cut_after` bytes have gone through it, one way ("down", "up")."""

    def __init__(self, target: str, cut: str = "down", cut_after: int | None = None, flip_at: int | None = None) -> None:
        self._target, self._cut, self.cut_after, self._flip_at = target, cut, cut_after, flip_at
        self.carried, self.cuts = {"down": 0, "up": 0}, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        host, _, port = self._target.rpartition(":")
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection((host, int(port)))
            except OSError:
                if self._listener.fileno() < 0:
                    return
                near.close()
                continue
            self._open += [near, far]
            for way, source, sink in (("up", near, far), ("down", far, near)):
                threading.Thread(target=self._carry, args=(way, source, sink), daemon=True).start()

    def _carry(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if way == self._cut and self._flip_at is not None and carried + len(data) > self._flip_at:
                    wrong = bytearray(data)
                    wrong[self._flip_at - carried] ^= 1
                    data, self._flip_at = bytes(wrong), None
                if way == self._cut and self.cut_after is not None and carried + len(data) > self.cut_after:
                    self.cuts += 1
                    break
                sink.sendall(data)
                carried += len(data)
                self.carried[way] += len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def hub_at(folder: Path, **options: object) -> Iterator[Hub]:
    hub = Hub("127.0.0.1:0", None, folder, insecure=True, **{"limits": QUICK, **options})  # type: ignore[arg-type]
    try:
        yield hub
    finally:
        hub.stop(0.0)


@contextlib.contextmanager
def link_to(address: str, folder: Path, site: str = "north", limits: Limits = QUICK) -> Iterator[Link]:
    link = Link(address, None, site, folder, insecure=True, limits=limits)
    try:
        yield link
    finally:
        link.close()


def tree_of(numbers: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"w": torch.randn(numbers, generator=torch.Generator().manual_seed(seed))}


def ask_for(tree: dict[str, torch.Tensor], client: ClientId = NORTH, round: int = 0) -> Assignment:
    return Assignment(round, client, "train", tree, 7)


def reply(assignment: Assignment, **more: object) -> Update:
    found = Update(assignment.round, assignment.client, assignment.work, assignment.tree, 8.0, {"loss": 0.5})
    return found._replace(**more)  # type: ignore[arg-type]


def event(link: Link, kind: type[SiteEvent]) -> SiteEvent:
    """The next event of this kind; invitations are accepted on the way, other events are dealt with."""
    found = None
    for each in link.events(SOON_S):
        if isinstance(each, Invited):
            link.consent(each.job, True)
        if isinstance(each, kind):
            found = each
            break
    assert found is not None, f"no {kind.__name__} came: {link.trouble or 'the line is there'}"
    return found


def offered(link: Link) -> Assignment:
    found = event(link, Offered)
    assert isinstance(found, Offered)
    return found.assignment


def settled(link: Link) -> list[SiteEvent]:
    """What comes until the outbox is empty."""
    found: list[SiteEvent] = []
    ends = time.monotonic() + SOON_S
    while link.outbox() and time.monotonic() < ends:
        found += list(link.events(0.05))
    assert not link.outbox()
    return found


def answer_of(hub: Hub, job: str = JOB) -> Answer:
    answer = next(hub.answers(job, SOON_S), None)
    assert answer is not None, f"no answer came: {hub.progress(job)}"
    return answer


def until(true: Callable[[], object], what: str) -> None:
    ends = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < ends, what
        time.sleep(0.01)
