"""Who speaks is what the certificate says, over real TLS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.errors import ConfigError
from atoll.identity import credentials, enrolment, peers, revocation, tokens
from atoll.identity.authority import Authority, create, pem
from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.values import Credentials, Offered
from tests.remote.ends import JOB, NORTH, QUICK, SOUTH, answer_of, ask_for, offered, reply, tree_of, until


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create(tmp_path / "pki", "trial.example", ["localhost"])


def of(held: credentials.Credentials) -> Credentials:
    return Credentials(held.key_pem, held.certificate_pem, held.ca_pem)


def enrolled(authority: Authority, folder: Path, name: str) -> Credentials:
    csr = credentials.prepare(folder, name)
    made = enrolment.enrol(authority, tokens.invite(authority, name), csr)
    return of(credentials.accept(folder, name, pem(made), authority.ca_pem, sha256=authority.sha256))


def who(authority: Authority) -> Callable[[bytes], str]:
    trusted = authority.trust()
    return lambda shown: peers.identify(shown, trusted).name


def test_a_site_is_who_its_certificate_says_whatever_it_calls_itself(authority: Authority, tmp_path: Path) -> None:
    hub = Hub("localhost:0", of(credentials.of_coordinator(authority)), tmp_path / "hub", who=who(authority), limits=QUICK)
    mine = enrolled(authority, tmp_path / "north", "north")
    honest = Link(hub.address, mine, "north", tmp_path / "a", limits=QUICK)
    liar = Link(hub.address, enrolled(authority, tmp_path / "east", "east"), "south", tmp_path / "b", limits=QUICK)
    try:
        hub.open(JOB, {NORTH: "north", SOUTH: "south"})
        hub.offer(JOB, [ask_for(tree_of(10)), ask_for(tree_of(10), SOUTH)])
        honest.answer(JOB, reply(offered(honest)))
        assert answer_of(hub).client == NORTH
        until(lambda: liar.online, liar.trouble)
        assert hub.sites().keys() == {"north", "east"}
        assert not list(liar.events(0.1))  # nothing for a member that it only calls itself
        assert hub.online(JOB) == {NORTH}
    finally:
        honest.close()
        liar.close()
        hub.stop(0.0)


def test_a_stranger_a_revoked_site_and_no_certificate_get_no_session(authority: Authority, tmp_path: Path) -> None:
    other = create(tmp_path / "other", "trial.example", ["localhost"])
    hub = Hub("localhost:0", of(credentials.of_coordinator(authority)), tmp_path / "hub", who=who(authority), limits=QUICK)
    held = enrolled(authority, tmp_path / "north", "north")
    link = Link(hub.address, held, "north", tmp_path / "a", limits=QUICK)
    stranger = Link(hub.address, enrolled(other, tmp_path / "x", "north"), "north", tmp_path / "b", limits=QUICK)
    mixed = Credentials(*enrolled(other, tmp_path / "y", "south")[:2], authority.ca_pem)  # it trusts us, and we do not know it
    unknown = Link(hub.address, mixed, "south", tmp_path / "c", limits=QUICK)
    try:
        until(lambda: link.online, link.trouble)
        revocation.revoke(authority, "north")
        hub.expel("north")
        until(lambda: "revoked" in link.trouble, link.trouble)
        assert hub.sites() == {}
        assert not stranger.online
        assert not unknown.online
        assert stranger.trouble
        assert unknown.trouble
    finally:
        for each in (link, stranger, unknown):
            each.close()
        hub.stop(0.0)


def test_new_certificates_at_both_ends_lose_nothing(authority: Authority, tmp_path: Path) -> None:
    mine = of(credentials.of_coordinator(authority))
    hub = Hub("localhost:0", mine, tmp_path / "hub", who=who(authority), limits=QUICK)
    link = Link(hub.address, enrolled(authority, tmp_path / "one", "north"), "north", tmp_path / "a", limits=QUICK)
    try:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree_of(10))])
        got = offered(link)
        hub.renew(mine)
        link.renew(enrolled(authority, tmp_path / "two", "north"))
        link.answer(JOB, reply(got))
        for event in link.events(30.0):
            assert not isinstance(event, Offered)  # it is not asked twice
            link.consent(JOB, True)
            break
        assert answer_of(hub).client == NORTH
    finally:
        link.close()
        hub.stop(0.0)


def test_certificates_without_a_way_to_read_them_are_refused(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="who"):
        Hub("localhost:0", of(credentials.of_coordinator(authority)), tmp_path / "hub")
