"""Certificates change while a job runs: nobody is shut out, no work is done twice, and who is revoked is gone at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from atoll.deploy.rotation import CoordinatorCertificate, SiteCertificate, Watch, renewing
from atoll.deploy.trust import plain
from atoll.errors import IdentityError, RemoteError
from atoll.identity import credentials, enrolment, peers, revocation, tokens
from atoll.identity.authority import Authority, create, pem
from atoll.identity.names import Role
from atoll.identity.peers import serial_text
from atoll.remote.enrolment import shown_chain
from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.values import Place
from tests.deploy.real import OFTEN, Run, same, simulated, told
from tests.remote.ends import until

SITES: tuple[Role, ...] = ("site",)
NOW = datetime.now(UTC)  # about: by this machine's clock TLS goes; certificates are made in the past instead
LATE = NOW - timedelta(days=61)  # when a site's certificate was made that is due now, and good for 29 days more
BEFORE = LATE + timedelta(days=1)  # when it was not due


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create(tmp_path / "pki", "trial.example", ["localhost"], now=NOW - timedelta(days=300))


def enrolled(authority: Authority, folder: Path, name: str) -> credentials.Credentials:
    made = enrolment.enrol(authority, tokens.invite(authority, name, now=LATE), credentials.prepare(folder, name), now=LATE)
    return credentials.accept(folder, name, pem(made), authority.ca_pem, sha256=authority.sha256)


@contextlib.contextmanager
def hub_of(authority: Authority, folder: Path) -> Iterator[Hub]:
    trusted = authority.trust()
    own = credentials.of_coordinator(authority, now=NOW - timedelta(days=299))  # as it was then, though it is due by now
    who: Callable[[bytes], str] = lambda shown: peers.identify(shown, trusted, roles=SITES).name  # noqa: E731
    ask = renewing(authority.folder)
    hub = Hub("localhost:0", plain(own), folder / "hub", who=who, limits=OFTEN, ask=ask)
    try:
        yield hub
    finally:
        hub.stop(0.0)


@contextlib.contextmanager
def link_of(hub: Hub, own: credentials.Credentials, folder: Path) -> Iterator[Link]:
    link = Link(hub.address, plain(own), own.who.name, folder / own.who.name / "link", limits=OFTEN)
    try:
        yield link
    finally:
        link.close()


def shown_by(hub: Hub) -> str:
    """The serial of the certificate that the hub shows now."""
    return serial_text(x509.load_der_x509_certificate(shown_chain(hub.address)[0]))


class Renewed:
    """A link whose certificate is renewed in the middle of every training."""

    def __init__(self, link: Link, own: SiteCertificate) -> None:
        self._link, self._own, self.answers = link, own, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def say(self, job: str, place: Place, step: int, steps: int = 0) -> None:
        if step == 2:
            self._own.look()
        self._link.say(job, place, step, steps)

    def answer(self, job: str, answer: object) -> None:
        self.answers += 1
        self._link.answer(job, answer)  # type: ignore[arg-type]


def test_a_certificate_is_renewed_in_the_middle_of_a_training(authority: Authority, tmp_path: Path) -> None:
    said: list[str] = []
    north, south = (enrolled(authority, tmp_path / f"id-{name}", name) for name in ("north", "south"))
    moment = BEFORE
    run = Run(tmp_path)
    with hub_of(authority, tmp_path) as hub, link_of(hub, north, tmp_path) as one, link_of(hub, south, tmp_path) as other:
        own = SiteCertificate(one, tmp_path / "id-north", said.append, now=lambda: moment)
        until(lambda: one.online, one.trouble)
        own.look()
        assert not said
        moment = peers.clock()
        line = Renewed(one, own)
        run.join("north", line)
        run.join("south", other)
        outcome = run.carried_out(hub)
    assert same(outcome.result.params, simulated())
    assert line.answers == 4  # two clients, two rounds: nothing was done again
    (told,) = said
    assert told.startswith("this site has a new certificate, good until")
    new = credentials.load(tmp_path / "id-north")
    assert (new.who.name, new.who.serial != north.who.serial, new.key_pem != north.key_pem) == ("north", True, True)
    assert not new.due()
    with authority.ledger.transaction() as book:
        assert [each.cause.partition(" ")[0] for each in book.certificates() if each.name == "north"] == ["token", "renewal"]


def test_what_another_process_has_renewed_is_taken_up(authority: Authority, tmp_path: Path) -> None:
    said: list[str] = []
    north = enrolled(authority, tmp_path / "id-north", "north")
    with hub_of(authority, tmp_path) as hub, link_of(hub, north, tmp_path) as link:
        own = SiteCertificate(link, tmp_path / "id-north", said.append, now=lambda: BEFORE)
        made = enrolment.renew(authority, north.certificate_pem, credentials.prepare(tmp_path / "id-north", "north"), now=BEFORE)
        credentials.accept(tmp_path / "id-north", "north", pem(made), authority.ca_pem)
        own.look()
        assert len(said) == 1
        revocation.revoke(authority, north.who.serial)  # the old one alone: with it, nobody is let in any more
        until(lambda: link.online and "does not know the question" in told(lambda: link.ask("anything")), link.trouble)


def test_a_renewal_that_can_not_be_had_is_tried_again(authority: Authority, tmp_path: Path) -> None:
    north = enrolled(authority, tmp_path / "id-north", "north")
    said: list[str] = []
    with hub_of(authority, tmp_path) as hub:
        with link_of(hub, north, tmp_path) as link:
            until(lambda: link.online, link.trouble)
            hub._floor._ask = None  # a coordinator that gives none
            own = SiteCertificate(link, tmp_path / "id-north", said.append, now=peers.clock)
            assert "answers no question called 'renew'" in told(own.look)
            waiting = (tmp_path / "id-north" / "next.key").read_bytes()
            hub._floor._ask = renewing(authority.folder)
            own.look()
            assert waiting in (tmp_path / "id-north" / "identity.pem").read_bytes()
            assert len(said) == 1
        with pytest.raises(RemoteError, match="can't be asked now"):
            link.ask("renew")


def test_the_coordinator_shows_its_new_certificate_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    said: list[str] = []
    north, south = (enrolled(authority, tmp_path / f"id-{name}", name) for name in ("north", "south"))
    moment = NOW - timedelta(days=299)
    with hub_of(authority, tmp_path) as hub, link_of(hub, north, tmp_path) as link:
        until(lambda: link.online, link.trouble)
        old = shown_by(hub)
        mine = CoordinatorCertificate(hub, authority.folder, said.append, now=lambda: moment)
        mine.look()
        assert shown_by(hub) == old
        moment = peers.clock()
        mine.look()
        assert shown_by(hub) == credentials.of_coordinator(authority).who.serial != old
        assert [line.partition(",")[0] for line in said] == ["the coordinator has a new certificate"]
        assert link.online  # its session goes on
        with link_of(hub, south, tmp_path) as other:
            until(lambda: other.online, other.trouble)


def test_who_is_revoked_is_expelled_at_once_and_its_neighbour_is_not(authority: Authority, tmp_path: Path) -> None:
    said: list[str] = []
    north, south = (enrolled(authority, tmp_path / f"id-{name}", name) for name in ("north", "south"))
    with hub_of(authority, tmp_path) as hub, link_of(hub, north, tmp_path) as one, link_of(hub, south, tmp_path) as other:
        until(lambda: one.online and other.online, one.trouble)
        mine = CoordinatorCertificate(hub, authority.folder, said.append)
        revocation.revoke(authority, "north")
        with Watch(mine.look, said.append, every_s=0.01):
            until(lambda: "revoked" in one.trouble, one.trouble)
            until(lambda: set(hub.sites()) == {"south"}, str(hub.sites()))
        assert other.online
        assert "north: a certificate was revoked, and its session is ended" in said
        with pytest.raises(RemoteError):
            one.ask("renew")


def test_a_watch_tells_a_trouble_once_and_ends(tmp_path: Path) -> None:
    said: list[str] = []
    looks = iter([IdentityError("no"), IdentityError("no"), None, IdentityError("no")])

    def look() -> None:
        found = next(looks, None)
        if found is not None:
            raise found

    with Watch(look, said.append, every_s=0.001):
        until(lambda: len(said) == 2, str(said))
    assert said == ["certificates: no"] * 2
