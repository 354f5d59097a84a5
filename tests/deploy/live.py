"""A coordinator at work over TLS, an honest site, and a hostile one that a test speaks for, all in this process.

Each round waits for the hostile site's answer, so that a test has a round to itself; when that ends, its model must be the one
that a federation of the honest client alone has by then.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch
from blake3 import blake3

from atoll.deploy.coordinator import coordinate
from atoll.deploy.refusals import refusals_in
from atoll.deploy.site import Site
from atoll.deploy.verify import records
from atoll.identity import credentials, enrolment, peers, tokens
from atoll.identity.authority import Authority, create, pem
from atoll.identity.names import Role
from atoll.interfaces import Sink
from atoll.job.build import build, data_of
from atoll.job.check import check
from atoll.job.text import parse
from atoll.remote import protocol_pb2 as pb
from atoll.remote.contents import pieces
from atoll.remote.desk import place_to
from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.values import CHUNK_BYTES, Blob, Credentials, Limits, Place, key_of, place_of
from atoll.store.runs import Store
from atoll.types import ClientId, Event, Failure, Tree, Update
from tests.remote.raw import Raw, Session, chunk

SOON_S = 60.0
HONEST, HOSTILE = ClientId("client-0"), ClientId("client-1")
ROUNDS = 120  # of which every test takes one
LIMITS = Limits(blob_bytes=1 << 23, stall_s=1.0, retry_s=0.01, ping_s=120.0)  # the hostile site sends no ping
JOB = """
atoll = 1
seed = 3
rounds = {rounds}

[data]
name = "digits"
clients = 2

[task]
name = "classification"
model = {{ name = "mlp", inputs = 64, hidden = [8], outputs = 10 }}

[local]
name = "sgd"
lr = 0.05
steps = 1

[algorithm]
name = "fedavg"

[evaluation]
every = 0

[sites]
north = ["client-0"]
south = ["client-1"]
"""


class Ended(Exception):
    """The test is over."""


class Asked(NamedTuple):
    """What the hostile site is asked in one round."""

    round: int
    tree: Tree  # of the model, as names and shapes
    parcel: pb.Parcel  # of an answer, without its bytes

    def of(self, data: bytes, **more: Any) -> pb.Parcel:
        """The parcel of an answer; `more`: what is said of its bytes instead of the truth."""
        said = {"digest": blake3(data).hexdigest(), "size_bytes": len(data), **more}
        return pb.Parcel(place=self.parcel.place, key=self.parcel.key, blob=pb.Blob(**said))

    def update(self, **more: Any) -> Update:
        """A good one."""
        tree = {name: torch.full_like(x, 0.25) for name, x in self.tree.items()}
        return Update(self.round, HOSTILE, "train", tree, 8.0, {"loss": 0.5})._replace(**more)


class Live:
    """One job over a hub. `more`: the end of its job file."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder, self.over = folder, threading.Event()
        self.authority = create(folder / "pki", "trial.example", ["localhost"])
        self.refusals = refusals_in(folder)
        trusted, sites = self.authority.trust(), frozenset[Role](["site"])
        self.hub = Hub(
            "localhost:0",
            plain(credentials.of_coordinator(self.authority)),
            folder / "hub",
            who=lambda shown: peers.identify(shown, trusted, roles=sites).name,
            limits=LIMITS,
            refused=self.refusals.note,
        )
        self.events, self.logged = list[Event](), list[bool]()  # of each acknowledgement: the journal has the update by then
        self.broken = list[BaseException]()
        self._changed = threading.Condition()
        self._offers: dict[int, pb.Offer] = {}
        self._after: dict[int, Tree] = {}
        text = JOB.format(rounds=ROUNDS) + more
        self.expected = alone(text)
        self._link = Link(self.hub.address, self.enrolled("north"), "north", folder / "north", limits=Limits(retry_s=0.01))
        site = Site(self._link, folder / "north-home")
        self.raw = Raw(self.hub.address, "south", self.enrolled("south"))
        self._session = Session(self.raw, self._heard)
        self._threads = [
            threading.Thread(target=self._guarded, args=each, daemon=True)
            for each in ((site.serve, self.over.is_set, 0.05), (self._coordinate, text))
        ]
        for thread in self._threads:
            thread.start()

    def enrolled(self, name: str, authority: Authority | None = None, **more: Any) -> Credentials:
        """The credentials of a site."""
        by = authority or self.authority
        folder = self.folder / f"{name}-{len(list(self.folder.iterdir()))}"
        request = credentials.prepare(folder, name)
        made = enrolment.enrol(by, tokens.invite(by, name), request, **more)
        key = credentials.waiting(folder)
        assert key is not None
        from cryptography.hazmat.primitives import serialization as form

        secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        return Credentials(secret, pem(made), self.authority.ca_pem)

    def _guarded(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Ended:
            pass
        except BaseException as error:
            self.broken.append(error)
            with self._changed:
                self._changed.notify_all()

    def _coordinate(self, text: str) -> None:
        document = parse(text)
        job = check(document)
        with Store(self.folder / "runs") as store, store.create("live", {}, job.seed, job.rounds) as run:
            self.run, acknowledge = run.id, self.hub.acknowledge

            def logged(job: str, update: Update) -> None:
                self.logged.append(place_of(update) in {Place(*each) for each in run.journal.places(update.round)})
                acknowledge(job, update)

            self.hub.acknowledge = logged  # type: ignore[method-assign]
            sinks: list[Sink] = [self, self.refusals.sink(run.id)]
            coordinate(self.hub, job, document.values, run, sinks, each_round=self._ended, wait=self._wait)

    def emit(self, event: Event) -> None:
        """As a sink of the job."""
        self.events.append(event)

    def _wait(self) -> None:
        if self.over.is_set():
            raise Ended

    def _ended(self, rounds: int, parameters: Tree) -> None:
        with self._changed:
            self._after[rounds] = {name: x.clone() for name, x in parameters.items()}
            self._changed.notify_all()

    def _heard(self, message: pb.CoordinatorMessage) -> None:
        if message.WhichOneof("said") == "offer":
            with self._changed:
                self._offers[message.offer.place.round] = message.offer
                self._changed.notify_all()

    def asked(self) -> Asked:
        """What the hostile site is asked in the open round."""
        with self._changed:
            there = self._changed.wait_for(lambda: self.broken or len(self._offers) > len(self._after), SOON_S)
            assert there, "no offer came"
            assert not self.broken, self.broken
            offer = self._offers[max(self._offers)]
        round = offer.place.round
        tree = Blob(offer.tree.digest, offer.tree.size_bytes)
        parcel = pb.Parcel(place=place_to(self.run, Place(round, HOSTILE, "train")), key=key_of(tree, offer.seed))
        return Asked(round, self.expected[0], parcel)

    def answer(self, asked: Asked, data: bytes) -> pb.Receipt:
        """Send an answer of these bytes."""
        cut = range(0, len(data), CHUNK_BYTES)
        parts = [chunk(data[at : at + CHUNK_BYTES], None if at else asked.of(data), data[:at]) for at in cut]
        receipt: pb.Receipt = self.raw.call("Push", iter(parts))
        return receipt

    def survives(self, asked: Asked, said: str = "the hostile site gives up") -> None:
        """The round ends without the hostile site's answer, heard of as `said`, and its model is that of the honest one alone."""
        if said == "the hostile site gives up":
            self.answer(asked, content(Failure(asked.round, HOSTILE, "train", "error", said)))
        with self._changed:
            there = self._changed.wait_for(lambda: self.broken or asked.round + 1 in self._after, SOON_S)
            assert not self.broken, self.broken
            assert there, f"the round {asked.round} has not ended: {self.hub.progress(self.run)}"
        mine = [event for event in self.events if event.round == asked.round]
        heard = {event.client: (event.kind, event.text) for event in mine if event.kind in ("update", "failure")}
        assert heard[HONEST][0] == "update", heard
        assert heard[HOSTILE][0] == "failure", heard
        assert re.search(said, heard[HOSTILE][1]), heard
        found, wanted = self._after[asked.round + 1], self.expected[asked.round + 1]
        assert self.logged, "nothing was acknowledged"
        assert all(self.logged), "an update was acknowledged before it was in the journal"
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), "the hostile site has changed the model"

    def refusals_of(self, peer: str, part: str) -> list[str]:
        """What the audit log has of a peer that holds these words."""
        told = [each for each in records(self.folder / "audit.jsonl") if each["event"] == "refused" and each["peer"] == peer]
        return [f"{each['what']}: {each['why']}" for each in told if "why" in each and part in each["why"] + each["what"]]

    def close(self) -> None:
        """End it all."""
        self.over.set()
        for thread in self._threads:
            thread.join(SOON_S)
        self._session.close()
        self.raw.close()
        self._link.close()
        self.hub.stop(0.0)


def alone(text: str) -> list[Tree]:
    """The model before the first round and after each, where the honest client is the only one."""
    job = check(parse(text.replace('south = ["client-1"]', "")))
    whole = data_of(job)
    federation = build(job, whole._replace(clients={HONEST: whole.clients[HONEST]}))
    found: list[Tree] = [{name: x.clone() for name, x in federation.algorithm.params(_first(federation)).items()}]
    federation.run(job.rounds, each_round=lambda _, tree: found.append({name: x.clone() for name, x in tree.items()}))
    return found


def _first(federation: Any) -> Any:
    from atoll.local.binding import binding

    return federation.algorithm.init(binding(federation.task.module).state())


def content(value: Update | Failure) -> bytes:
    """An answer as its blob holds it."""
    return b"".join(pieces(value))


def plain(held: Any) -> Credentials:
    """As the two ends take them."""
    return Credentials(held.key_pem, held.certificate_pem, held.ca_pem)
