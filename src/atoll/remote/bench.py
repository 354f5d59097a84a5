"""What a site has in hand for all its jobs: what it was offered, how far it is, what it has answered, and what to be told."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atoll.remote import protocol_pb2 as pb
from atoll.remote.desk import blob_from, place_from, place_to
from atoll.remote.outbox import Letter, Outbox
from atoll.remote.spool import Spool
from atoll.remote.values import Acknowledged, Blob, Cancelled, Closed, Consent, Invited, Limits, Place, Refused, SiteEvent, key_of
from atoll.types import Answer, ClientId


@dataclass
class Work:
    """One assignment at its site."""

    job: str
    place: Place
    key: str
    seed: int
    tree: Blob
    state: Literal["fetching", "fetched", "given", "answered"] = "fetching"
    step: int = 0
    steps: int = 0
    told: tuple[int, int] = (0, 0)  # the progress that the coordinator knows
    text: str = ""  # what stands in its way

    def progress(self) -> pb.SiteMessage:
        """As it goes to the coordinator."""
        doing = "training" if self.state == "given" else "waiting"
        place = place_to(self.job, self.place)
        return pb.SiteMessage(progress=pb.Progress(place=place, doing=doing, done=self.step, total=self.steps, text=self.text))


NOTHING = Blob("", 0)
Item = SiteEvent | Work  # a work that was fetched is read when its turn comes


class Bench:
    """The state that the link's callers and its errands share, under one lock; `changed` is notified when it changes."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.trees, self.outbox = Spool(folder / "trees", limits), Outbox(folder / "outbox", limits)
        self.works = dict[tuple[str, Place], Work]()
        self.consents: dict[str, Consent] = {}
        self.items: deque[Item] = deque()
        self.say: Callable[[pb.SiteMessage], None] = nobody_listens  # of the session, while there is one
        for letter in self.outbox.letters.values():
            self.works[letter.job, letter.place] = Work(letter.job, letter.place, letter.key, 0, NOTHING, "answered")

    def hello(self) -> list[pb.Parcel]:
        """The outbox, as it goes to the coordinator."""
        with self.changed:
            return [parcel_to(letter) for letter in self.outbox.letters.values()]

    def invited(self, said: pb.Invitation) -> None:
        """The coordinator invites, or has come back; what was answered before is answered again."""
        with self.changed:
            self._add(Invited(said.job, tuple(ClientId(client) for client in said.clients), said.brief))
            if said.job in self.consents:
                self.say(consent_to(said.job, self.consents[said.job]))

    def offered(self, said: pb.Offer) -> Work | Letter | None:
        """What to do about an offer: fetch its tree, send its answer, or nothing, as it is being worked at."""
        job, place, tree = said.place.job, place_from(said.place), blob_from(said.tree)
        key = key_of(tree, said.seed)
        with self.changed:
            for old_job, old in [*self.works, *self.outbox.letters]:
                if old_job == job and (old.client, old.work) == (place.client, place.work) and old != place:
                    self._refused(job, old)  # nobody is asked for two of these at once: the older one is not wanted any more
            letter, work = self.outbox.letters.get((job, place)), self.works.get((job, place))
            if letter is not None and letter.key == key:
                return letter
            if (letter and letter.key != key) or (work and work.key != key):
                self._refused(job, place)
                work = None
            if work is None:
                work = self.works[job, place] = Work(job, place, key, said.seed, tree)
            self.say(work.progress())
            return work if work.state == "fetching" else None

    def fetched(self, work: Work) -> None:
        """Its tree is here."""
        with self.changed:
            if self.works.get((work.job, work.place)) is work and work.state == "fetching":
                work.state, work.text = "fetched", ""
                self.items.append(work)
                self.changed.notify_all()

    def wants(self, work: Work) -> bool:
        """It is still asked for, in this very form."""
        return self.works.get((work.job, work.place)) is work

    def begin(self, work: Work) -> bool:
        """Its tree is read; False: it was withdrawn meanwhile."""
        with self.changed:
            if self.works.get((work.job, work.place)) is not work:
                return False
            work.state = "given"
            self.say(work.progress())
            return True

    def answered(self, job: str, place: Place, answer: Answer) -> Letter | None:
        """Keep an answer; None where nobody wants it any more, or it was given before."""
        with self.changed:
            work = self.works.get((job, place))
        if work is None or work.state == "answered":
            return None
        letter = self.outbox.put(job, work.key, answer)
        with self.changed:
            if self.works.get((job, place)) is not work:
                self.outbox.drop(letter)
                return None
            work.state = "answered"
            self._drop_tree(work)
            return letter

    def settled(self, said: pb.Settled) -> None:
        """The coordinator has logged an answer, or does not want it."""
        job, place, digest = said.parcel.place.job, place_from(said.parcel.place), said.parcel.blob.digest
        with self.changed:
            letter = self.outbox.letters.get((job, place))
            if letter is not None and digest in ("", letter.blob.digest):
                self._add(Acknowledged(job, place) if said.accepted else Refused(job, place))
            elif letter is None and not digest and not said.accepted and (job, place) in self.works:
                self._refused(job, place)
            if letter is None or digest not in ("", letter.blob.digest):
                self._confirm(said.parcel)  # dealt with before, and the coordinator did not hear of it

    def cancelled(self, said: pb.Cancel) -> None:
        """The coordinator withdraws a kind of work."""
        with self.changed:
            for job, place in {*self.works, *self.outbox.letters}:
                if (job, place.round, place.work) == (said.job, said.round, said.work) and not self._logged(job, place):
                    self._forget(job, place)
            self._add(Cancelled(said.job, said.round, said.work))

    def closed(self, said: pb.Ending) -> None:
        """The job has ended: nothing of it is kept here."""
        with self.changed:
            for job, place in {*self.works, *self.outbox.letters}:
                if job == said.job and not self._logged(job, place):
                    self._forget(job, place)
            self.consents.pop(said.job, None)
            self._add(Closed(said.job, said.failed))
            self.trees.keep([work.tree for work in self.works.values()])

    def dealt_with(self, item: SiteEvent) -> None:
        """The layer above has done what an event asks for: only now is it confirmed, and forgotten here."""
        if not isinstance(item, Acknowledged | Refused):
            return
        with self.changed:
            letter = self.outbox.letters.get((item.job, item.place))
            if letter is not None:
                self.outbox.drop(letter)
                self._confirm(parcel_to(letter))
            work = self.works.get((item.job, item.place))
            if work is not None and work.state == "answered":
                del self.works[item.job, item.place]

    def put_back(self, item: SiteEvent) -> None:
        """The layer above failed at it: it is told again. Twice is as good as once."""
        with self.changed:
            if isinstance(item, Acknowledged | Refused):
                self.items.appendleft(item)

    def moved(self) -> list[pb.SiteMessage]:
        """The progress of trainings since it was last asked for."""
        with self.changed:
            found = [work for work in self.works.values() if work.state == "given" and work.told != (work.step, work.steps)]
            for work in found:
                work.told = work.step, work.steps
            return [work.progress() for work in found]

    def _logged(self, job: str, place: Place) -> bool:
        """The coordinator has it, and the layer above is still to commit what belongs to it."""
        return Acknowledged(job, place) in self.items

    def _refused(self, job: str, place: Place) -> None:
        if (job, place) not in self.outbox.letters:
            self._forget(job, place)
        self._add(Refused(job, place))

    def _forget(self, job: str, place: Place) -> None:
        """Drop a work, its tree and its answer."""
        work, letter = self.works.pop((job, place), None), self.outbox.letters.get((job, place))
        if letter is not None:
            self.outbox.drop(letter)
        if work is not None:
            with contextlib.suppress(ValueError):
                self.items.remove(work)
            self._drop_tree(work)

    def _drop_tree(self, work: Work) -> None:
        if work.tree != NOTHING and not any(
            other.tree == work.tree and other.state != "answered" for other in self.works.values()
        ):
            self.trees.drop(work.tree)
        if all(other.state == "answered" for other in self.works.values()):
            self.trees.keep([])  # left by works that were withdrawn while this site was away

    def _confirm(self, parcel: pb.Parcel) -> None:
        self.say(pb.SiteMessage(settled=pb.Settled(parcel=parcel)))

    def _add(self, event: SiteEvent) -> None:
        if event not in self.items:
            self.items.append(event)
            self.changed.notify_all()


def parcel_to(letter: Letter) -> pb.Parcel:
    """For the network."""
    blob = pb.Blob(digest=letter.blob.digest, size_bytes=letter.blob.size_bytes)
    return pb.Parcel(place=place_to(letter.job, letter.place), key=letter.key, blob=blob)


def consent_to(job: str, consent: Consent) -> pb.SiteMessage:
    """For the network."""
    return pb.SiteMessage(consent=pb.Consent(job=job, accepted=consent.accepted, reason=consent.reason, about=consent.about))


def nobody_listens(message: pb.SiteMessage) -> None:
    """Between two sessions."""
