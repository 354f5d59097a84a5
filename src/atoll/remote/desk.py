"""One job at the coordinator: who was asked what, how far they are, which answers are here. Plain state, under the hub's lock."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atoll.errors import RemoteError, StoreError
from atoll.remote import protocol_pb2 as pb
from atoll.remote.values import Blob, Consent, Doing, Place, Presence, Progress, key_of
from atoll.store import files
from atoll.types import ClientId

_MOST_LINES = 4000


class Unknown(RemoteError):
    """A job or a piece of work that this site has no part in; it is not told whether others have."""


@dataclass
class Task:
    """One assignment until its answer is settled."""

    place: Place
    site: str
    seed: int
    tree: Blob
    doing: Doing = "waiting"
    done: int = 0
    total: int = 0
    text: str = ""
    since_s: float = field(default_factory=time.monotonic)
    moved_s: float = field(default_factory=time.monotonic)
    answer: Blob | None = None  # whole, and here
    coming: Blob | None = None  # being pushed
    here: bool = False
    damaged: int = 0  # times that a whole answer was not what was announced
    broken: str = ""  # why there is an end, and no answer

    @property
    def key(self) -> str:
        """What is asked for."""
        return key_of(self.tree, self.seed)

    def at(self, doing: Doing, done: int, total: int, text: str = "") -> None:
        """Something of it moved."""
        now = time.monotonic()
        if doing != self.doing:
            self.since_s = now
        if (doing, done) != (self.doing, self.done):
            self.moved_s = now
        self.doing, self.done, self.total, self.text = doing, done, total, text

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """While bytes of its answer are taken: why they can't be is told of it, until something moves again."""
        try:
            yield
        except (RemoteError, StoreError) as error:
            self.text = str(error)
            raise

    def land(self, answer: Blob | None) -> None:
        """It is answered; None: in a way that can't be used."""
        self.answer, self.coming, self.here = answer, None, True
        self.at("answered", 0, 0)

    def offer(self, job: str) -> pb.CoordinatorMessage:
        """As it goes to the site."""
        tree = pb.Blob(digest=self.tree.digest, size_bytes=self.tree.size_bytes)
        return pb.CoordinatorMessage(offer=pb.Offer(place=place_to(job, self.place), seed=self.seed, tree=tree))


class Desk:
    """The state of one job. What is settled and not yet confirmed by its site is kept in a file, for a restart."""

    def __init__(self, job: str, folder: Path) -> None:
        self.job, self.sites, self.brief = job, dict[ClientId, str](), b""
        self.failed = ""  # why, where the job has failed here
        self.consents: dict[str, Consent] = {}
        self.tasks: dict[Place, Task] = {}
        self.landed: deque[Place] = deque()  # here, and not yet given to the engine
        self.accepted: set[Place] = set()  # before a restart: the journal has them
        self._settled_file = files.make_folder(folder) / "settled.jsonl"
        self.settled: dict[tuple[Place, str], tuple[str, bool]] = {}  # (place, digest) -> (site, accepted), unconfirmed
        self._lines = 0  # of the file
        self._read()

    def members(self) -> frozenset[str]:
        """The sites of the job."""
        return frozenset(self.sites.values())

    def settle(self, place: Place, digest: str, site: str, accepted: bool) -> pb.CoordinatorMessage:
        """Remember what became of an answer, on disk, until its site has confirmed that it knows; what to say to it."""
        self.settled[place, digest] = (site, accepted)
        self._note([*place, digest, site, accepted])
        return self.settlement(place, digest, accepted)

    def settlement(self, place: Place, digest: str, accepted: bool) -> pb.CoordinatorMessage:
        """As it goes to the site."""
        parcel = pb.Parcel(place=place_to(self.job, place), blob=pb.Blob(digest=digest))
        return pb.CoordinatorMessage(settled=pb.Settled(parcel=parcel, accepted=accepted))

    def confirm(self, place: Place, digest: str, site: str) -> None:
        """The site knows."""
        if self.settled.get((place, digest), ("", False))[0] == site:
            del self.settled[place, digest]
            self._note([*place, digest, site, None])

    def invitation(self, site: str) -> pb.CoordinatorMessage:
        """As it goes to the site."""
        clients = [client for client, its in self.sites.items() if its == site]
        return pb.CoordinatorMessage(invitation=pb.Invitation(job=self.job, clients=clients, brief=self.brief))

    def greeting(self, site: str) -> Iterator[pb.CoordinatorMessage]:
        """What a site that has just come is told before any offer."""
        for (place, digest), (its, accepted) in self.settled.items():
            if its == site:
                yield self.settlement(place, digest, accepted)
        if self.failed:
            yield pb.CoordinatorMessage(ending=pb.Ending(job=self.job, failed=self.failed))
        elif site in self.members():
            yield self.invitation(site)

    def recall(self, parcel: pb.Parcel, site: str) -> None:
        """A site still keeps this answer: if the journal had it before a restart, the site is to be told."""
        place, digest = place_from(parcel.place), parcel.blob.digest
        if place in self.accepted and (place, digest) not in self.settled and self.sites.get(place.client) == site:
            self.settle(place, digest, site, True)

    def takes_part(self, site: str) -> bool:
        """It has said so, in its present session."""
        return site in self.consents and self.consents[site].accepted

    def moved(self, site: str, progress: pb.Progress) -> None:
        """A site says how far it is."""
        task = self.tasks.get(place_from(progress.place))
        if task is not None and task.site == site and not task.here and progress.doing in ("waiting", "training"):
            doing: Doing = "training" if progress.doing == "training" else "waiting"
            task.at(doing, progress.done, progress.total, progress.text[:1024])

    def offers(self, site: str) -> Iterator[pb.CoordinatorMessage]:
        """What this site is still to answer, if it takes part."""
        if self.takes_part(site):
            for task in self.tasks.values():
                if task.site == site and not task.here:
                    yield task.offer(self.job)

    def presence(self, online: Collection[str], heard: Mapping[str, float], gone: Mapping[str, float]) -> dict[str, Presence]:
        """By site. `heard`: when those online last spoke; `gone`: when others went."""
        now, found, clients = time.monotonic(), dict[str, Presence](), dict[str, list[ClientId]]()
        for client, site in self.sites.items():
            clients.setdefault(site, []).append(client)
        for site, its in clients.items():
            seen = (heard if site in online else gone).get(site)
            found[site] = Presence(tuple(its), site in online, None if seen is None else now - seen, self.consents.get(site))
        return found

    def progress(self, online: Collection[str], gone: Mapping[str, float]) -> Seen:
        """By client. `online`: sites; `gone`: sites, and when they went."""
        tasks = {task.place.client: task for task in self.tasks.values()}
        return Seen(self.sites, tasks, self.consents, frozenset(online), gone)

    def _read(self) -> None:
        if not self._settled_file.exists():
            return
        for line in self._settled_file.read_text().splitlines():
            try:
                round, client, work, digest, site, accepted = json.loads(line)
            except ValueError:
                continue  # the last line of a killed process; its site asks again
            key = Place(round, ClientId(client), work), digest
            if accepted is None:
                self.settled.pop(key, None)
            else:
                self.settled[key] = site, accepted
        self._rewrite()

    def _rewrite(self) -> None:
        lines = [json.dumps([*place, digest, *told]) + "\n" for (place, digest), told in self.settled.items()]
        with files.replacing(self._settled_file, 0) as file:
            file.write("".join(lines).encode())
        self._lines = len(lines)

    def _note(self, row: list[object]) -> None:
        if self._lines > _MOST_LINES + 4 * len(self.settled):  # nearly all of them are confirmed: the file does not grow for ever
            self._rewrite()
        self._lines += 1
        try:
            with open(self._settled_file, "a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise files.trouble(error, self._settled_file) from error


class Seen(Mapping[ClientId, Progress]):
    """What each client is at, computed for those who are looked up: a round looks at its clients one by one."""

    def __init__(
        self,
        sites: Mapping[ClientId, str],
        tasks: Mapping[ClientId, Task],
        consents: Mapping[str, Consent],
        online: Collection[str],
        gone: Mapping[str, float],
    ) -> None:
        self._sites, self._tasks, self._consents, self._online, self._gone = sites, tasks, consents, online, gone
        self._now = time.monotonic()

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __getitem__(self, client: ClientId) -> Progress:
        site, task, now = self._sites[client], self._tasks.get(client), self._now
        consent, went = self._consents.get(site), self._gone.get(site)
        place, text = (task.place, task.text) if task else (None, "")
        if site not in self._online:
            since = 0.0 if went is None else now - went
            why = "its site has not called since the coordinator started" if went is None else "its site is offline"
            return Progress("offline", 0, 0, since, since, place, why)
        if consent is None or not consent.accepted:
            why = f"its site refuses the job: {consent.reason}" if consent else "its site has not answered the invitation"
            return Progress("idle", 0, 0, 0.0, 0.0, place, why)
        if task is None:
            return Progress("idle")
        return Progress(task.doing, task.done, task.total, now - task.since_s, now - task.moved_s, place, text)


def place_to(job: str, place: Place) -> pb.Place:
    """For the network."""
    return pb.Place(job=job, round=place.round, client=place.client, work=place.work)


def place_from(place: pb.Place) -> Place:
    """From the network."""
    return Place(place.round, ClientId(place.client), place.work)


def blob_from(blob: pb.Blob) -> Blob:
    """From the network. Raises RemoteError where the digest is none: it is about to be a file's name."""
    if not re.fullmatch("[0-9a-f]{64}", blob.digest):
        raise RemoteError(f"{blob.digest[:80]!r} is no digest; the other end is damaged or hostile")
    return Blob(blob.digest, blob.size_bytes)
