"""What the coordinator has at hand for all its jobs: who is there, what each job waits for, and the bytes that came."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from atoll.errors import RemoteError
from atoll.remote import protocol_pb2 as pb
from atoll.remote.desk import Desk, Task, Unknown, blob_from, place_from
from atoll.remote.service import Session
from atoll.remote.spool import Damaged, Spool
from atoll.remote.values import Blob, Consent, Limits, chunk_size
from atoll.types import ClientId

_TRIES = 3  # times that a whole answer may come with other bytes than announced
_ON_THEIR_WAY_BYTES = 1 << 23  # of the chunks of all sites, of which each transfer has up to three in hand
_MOST_UNSAID = 1000  # messages to a site that is not there


class Floor:
    """The state that the hub's callers and its service share, under one lock; `changed` is notified when it changes.

    `came` to `asked` are called by the service, for a site that it has identified; nothing that the site says of
    another one counts.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        log: Callable[[str, str, str], object],
        ask: Callable[[str, str, bytes], bytes] | None,
    ) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.trees = Spool(folder / "trees", limits)
        self.desks: dict[str, Desk] = {}
        self.inboxes: dict[str, Spool] = {}
        self.sessions: dict[str, Session] = {}
        self.held: dict[str, list[pb.Parcel]] = {}  # by site: its outbox when it came
        self.went_s: dict[str, float] = {}
        self.heard_s: dict[str, float] = {}
        self.ended: set[str] = set()
        self.unsaid: dict[str, deque[pb.CoordinatorMessage]] = {}
        self.offering = 0  # calls of `Hub.offer` that are writing
        self._log, self._ask = log, ask

    def came(self, session: Session, held: list[pb.Parcel]) -> None:
        """A site is there."""
        with self.changed:
            if (old := self.sessions.get(session.site)) is not None:
                old.say(None)  # a line that was cut and not yet missed
            self.sessions[session.site], self.held[session.site] = session, held
            self.heard_s[session.site] = time.monotonic()
            for desk in self.desks.values():
                if session.site in desk.members():
                    desk.consents.pop(session.site, None)
                    self.greet(desk, session)
            for message in self.unsaid.pop(session.site, []):
                session.say(message)  # after what is settled: a withdrawal of the rest must not undo that
            for job in {parcel.place.job for parcel in held} & self.ended:
                session.say(ending(job))
            self.changed.notify_all()

    def went(self, session: Session) -> None:
        """A site is gone, or has come anew before it was seen to go."""
        with self.changed:
            if self.sessions.get(session.site) is session:
                del self.sessions[session.site]
                self.went_s[session.site] = time.monotonic()
                self.changed.notify_all()

    def heard(self, session: Session, message: pb.SiteMessage) -> None:
        """A site has spoken: only of its own jobs, and only as itself."""
        kind = message.WhichOneof("said")
        with self.changed:
            self.heard_s[session.site] = time.monotonic()
            said: Any = getattr(message, kind or "ping")
            job = (
                said.parcel.place.job if kind == "settled" else said.place.job if kind == "progress" else getattr(said, "job", "")
            )
            desk = self.desks.get(job)
            if desk is None or session.site not in desk.members():
                return
            if kind == "consent":
                desk.consents[session.site] = Consent(said.accepted, said.reason, said.about)
                for offer in desk.offers(session.site):
                    session.say(offer)
                self.changed.notify_all()
            elif kind == "settled":
                desk.confirm(place_from(said.parcel.place), said.parcel.blob.digest, session.site)
                self.changed.notify_all()
            elif kind == "progress":
                desk.moved(session.site, said)
            elif kind == "line":
                self._log(session.site, job, said.text[:4096])

    def fetching(self, site: str, job: str, blob: Blob) -> Callable[[int], None]:
        """May this site have this tree? What to call as its bytes go. Raises Unknown."""
        with self.changed:
            desk = self.desks.get(job)
            tasks = [task for task in desk.tasks.values() if task.site == site and task.tree == blob] if desk else []
        if not tasks:
            raise Unknown(f"no such tree is offered to {site}")

        def moved(at: int) -> None:
            for task in tasks:
                task.at("fetching", at, blob.size_bytes)

        return moved

    def have(self, site: str, parcel: pb.Parcel) -> pb.Receipt:
        """How much of an answer is here. Raises Unknown where this site has no part in it, and what `Spool.part` raises."""
        task, blob = self._task(site, parcel), blob_from(parcel.blob)
        if task is None:
            return pb.Receipt(wanted=False)
        if task.here:
            same = task.answer == blob
            return pb.Receipt(offset=blob.size_bytes if same else 0, complete=same, wanted=same)
        inbox = self.inboxes[parcel.place.job]
        if task.coming is not None and task.coming != blob:
            inbox.drop(task.coming)  # made anew after a restart: it has other bytes
        task.coming = blob
        landed: Blob | None = blob
        if not inbox.has(blob):
            with task.taken():
                part = inbox.part(blob)
            if part.offset < blob.size_bytes:
                return pb.Receipt(offset=part.offset, wanted=True, chunk_bytes=self.chunk_bytes)
            try:
                inbox.finish(part)
            except Damaged:
                task.damaged += 1
                if task.damaged < _TRIES:
                    raise
                landed, task.broken = None, f"the site {site} sent {_TRIES} times bytes that are not of the digest that it gave"
        with self.changed:
            desk = self.desks.get(parcel.place.job)
            if desk is not None and desk.tasks.get(task.place) is task and not task.here:
                task.land(landed)
                desk.landed.append(task.place)
                self.changed.notify_all()
        size_bytes = parcel.blob.size_bytes
        return pb.Receipt(offset=size_bytes, complete=landed is not None, wanted=landed is not None)

    def add(self, site: str, parcel: pb.Parcel, at: int, data: bytes | memoryview, mark: int) -> None:
        """Bytes of an answer. Raises what `Spool.add` raises, and Unknown where it is not wanted any more."""
        task = self._task(site, parcel)
        if task is None or task.here:
            raise Unknown("this answer is not wanted any more")
        blob = blob_from(parcel.blob)
        with task.taken():
            ends = self.inboxes[parcel.place.job].add(blob, at, data, mark)
        task.at("pushing", ends, blob.size_bytes)

    @property
    def chunk_bytes(self) -> int:
        """Of the chunks on their way: the less, the more sites there are, so that memory does not grow with them."""
        return chunk_size(_ON_THEIR_WAY_BYTES // max(len(self.sessions), 1))

    def asked(self, site: str, name: str, body: bytes) -> bytes:
        """What the layer above answers."""
        if self._ask is None:
            raise Unknown(f"this coordinator answers no question called {name[:80]!r}")
        return self._ask(site, name, body)

    def _task(self, site: str, parcel: pb.Parcel) -> Task | None:
        """What this parcel answers; None where it is not, or no more, asked for. Raises Unknown for what is another's."""
        with self.changed:
            desk = self.desks.get(parcel.place.job)
            if desk is None or desk.sites.get(ClientId(parcel.place.client)) != site:
                raise Unknown(f"the site {site} has no part in such a job, or does not speak for such a client")
            task = desk.tasks.get(place_from(parcel.place))
            return task if task is not None and task.key == parcel.key else None

    def desk(self, job: str) -> Desk:
        if job not in self.desks:
            raise RemoteError(f"the job {job!r} is not open at this hub; open it first")
        return self.desks[job]

    def tell(self, site: str, message: pb.CoordinatorMessage) -> None:
        """Say it now, or when the site is next there."""
        if site in self.sessions:
            self.sessions[site].say(message)
        else:
            self.unsaid.setdefault(site, deque(maxlen=_MOST_UNSAID)).append(message)

    def greet(self, desk: Desk, session: Session) -> None:
        for parcel in self.held.get(session.site, []):
            if parcel.place.job == desk.job:
                desk.recall(parcel, session.site)
        for message in desk.greeting(session.site):
            session.say(message)

    def free(self, desk: Desk, tasks: Collection[Task]) -> None:
        """The disk that these tasks, which are settled, took."""
        for task in tasks:
            for blob in filter(None, (task.answer, task.coming)):
                self.inboxes[desk.job].drop(blob)
        desk.landed = deque(place for place in desk.landed if place in desk.tasks)
        if not desk.tasks:  # nothing is on its way: parts are of answers that nobody waits for
            self.inboxes[desk.job].keep([])
        for tree in {task.tree for task in tasks}:
            if not self.offering and not any(task.tree == tree for each in self.desks.values() for task in each.tasks.values()):
                self.trees.drop(tree)
        self.changed.notify_all()

    def sweep(self) -> None:
        """Drop trees that nobody is to fetch any more; not while one is written that may be the same."""
        if not self.offering:
            self.trees.keep({task.tree for desk in self.desks.values() for task in desk.tasks.values()})


def ending(job: str, failed: str = "") -> pb.CoordinatorMessage:
    """A job's end, as it goes to a site."""
    return pb.CoordinatorMessage(ending=pb.Ending(job=job, failed=failed))
