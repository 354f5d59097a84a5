"""A certificate is replaced while it is still good: both are good for a time, so nobody is shut out in between."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from atoll.errors import (
    CertificateExpired,
    CertificateRevoked,
    ForeignCertificate,
    NameRefused,
    RequestRefused,
    WrongRole,
)
from atoll.identity.authority import LIFE, Authority, coordinator_certificate, pem, renew_coordinator
from atoll.identity.credentials import of_coordinator
from atoll.identity.enrolment import enrol, renew
from atoll.identity.peers import identify, serial_text
from atoll.identity.requests import make_request, request_for
from atoll.identity.revocation import revoke
from atoll.identity.tokens import invite

HOSTS = ["localhost", "127.0.0.1"]


def first(authority: Authority, now: datetime, name: str = "hospital-a", role: str = "site") -> bytes:
    return pem(enrol(authority, invite(authority, name, role=role, now=now), make_request(name)[1], now=now))


def test_both_are_good_until_the_old_one_expires(authority: Authority, now: datetime) -> None:
    old, later = first(authority, now, role="auditor"), now + LIFE * 2 / 3
    new = pem(renew(authority, old, make_request("hospital-a")[1], now=later))
    trusted = authority.trust()
    before, after = (identify(each, trusted, now=later) for each in (old, new))
    assert (before.name, before.role) == (after.name, after.role) == ("hospital-a", "auditor")
    assert before.serial != after.serial
    assert after.expires == later + LIFE
    with pytest.raises(CertificateExpired):
        identify(old, trusted, now=after.expires)
    identify(new, trusted, now=after.expires)


def test_ten_times_over(authority: Authority, now: datetime) -> None:
    held = first(authority, now)
    for i in range(1, 11):
        held = pem(renew(authority, held, make_request("hospital-a")[1], now=now + i * LIFE / 2))
    assert identify(held, authority.trust(), now=now + 5 * LIFE).name == "hospital-a"


def test_an_answer_that_was_lost_is_given_again(authority: Authority, now: datetime) -> None:
    old, (key, csr) = first(authority, now), make_request("hospital-a")
    made = renew(authority, old, csr, now=now)
    assert renew(authority, old, request_for("hospital-a", key), now=now + timedelta(hours=1)) == made


def test_a_renewal_brings_a_new_key(authority: Authority, now: datetime) -> None:
    key, csr = make_request("hospital-a")
    old = pem(enrol(authority, invite(authority, "hospital-a", now=now), csr, now=now))
    with pytest.raises(RequestRefused, match="new key"):
        renew(authority, old, request_for("hospital-a", key), now=now)


def test_nobody_renews_anothers(authority: Authority, other: Authority, now: datetime) -> None:
    old = first(authority, now)
    with pytest.raises(RequestRefused, match="nobody renews another's"):
        renew(authority, old, make_request("hospital-b")[1], now=now)
    with pytest.raises(ForeignCertificate):
        renew(authority, first(other, now), make_request("hospital-a")[1], now=now)
    with pytest.raises(WrongRole):
        renew(authority, pem(coordinator_certificate(authority)), make_request("coordinator")[1], now=now)


def test_too_late_is_too_late(authority: Authority, now: datetime) -> None:
    with pytest.raises(CertificateExpired, match="new token"):
        renew(authority, first(authority, now), make_request("hospital-a")[1], now=now + LIFE + timedelta(seconds=1))


def test_what_is_revoked_is_not_renewed_and_takes_its_successors_with_it(authority: Authority, now: datetime) -> None:
    old = first(authority, now)
    new = pem(renew(authority, old, make_request("hospital-a")[1], now=now))
    revoke(authority, "hospital-a", now=now)
    for each in (old, new):
        with pytest.raises(CertificateRevoked):
            renew(authority, each, make_request("hospital-a")[1], now=now)
        with pytest.raises(CertificateRevoked):
            identify(each, authority.trust(), now=now)


def test_the_old_one_can_be_revoked_alone(authority: Authority, now: datetime) -> None:
    old = first(authority, now)
    new = pem(renew(authority, old, make_request("hospital-a")[1], now=now))
    revoke(authority, identify(old, authority.trust(), now=now).serial, now=now)
    with pytest.raises(CertificateRevoked):
        identify(old, authority.trust(), now=now)
    identify(new, authority.trust(), now=now)


def test_the_coordinators(authority: Authority, now: datetime) -> None:
    old = coordinator_certificate(authority)
    new = renew_coordinator(authority, now=now)
    assert coordinator_certificate(authority) == new != old
    assert new.public_key() != old.public_key()
    trusted, roles = authority.trust(), ("coordinator",)
    assert {identify(pem(each), trusted, roles=("coordinator",), now=now).name for each in (old, new)} == set(roles)
    with pytest.raises(NameRefused):
        renew_coordinator(authority, ["*"], now=now)
    assert coordinator_certificate(authority) == new


def test_the_coordinators_is_renewed_when_it_is_due(authority: Authority, now: datetime) -> None:
    serial = serial_text(coordinator_certificate(authority))
    assert of_coordinator(authority, now=now).who.serial == serial
    assert of_coordinator(authority, now=now + timedelta(days=240)).who.serial == serial
    renewed = of_coordinator(authority, now=now + timedelta(days=250)).who
    assert renewed.serial != serial
    assert of_coordinator(authority, now=now + timedelta(days=1000)).who.serial != renewed.serial  # nor is it lost by expiry
