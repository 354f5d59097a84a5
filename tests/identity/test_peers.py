from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.errors import (
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    ForeignCertificate,
    IdentityError,
    WrongRole,
)
from atoll.identity.authority import LIFE, Authority, coordinator_certificate, pem
from atoll.identity.enrolment import enrol
from atoll.identity.peers import authority_among, fingerprint, identify, serial_text, still_good, trust
from atoll.identity.requests import make_request
from atoll.identity.revocation import revoke
from atoll.identity.tokens import invite


def site(authority: Authority, now: datetime, name: str = "hospital-a", role: str = "site") -> x509.Certificate:
    return enrol(authority, invite(authority, name, role=role, now=now), make_request(name)[1], now=now)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def forged(authority: Authority, key: Any, now: datetime, uris: list[str], purposes: list[Any], issuer: Any = None) -> bytes:
    """A certificate with what its maker likes, signed by `key`."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "eve")]))
        .issuer_name(issuer or authority.ca.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    if uris:
        names = [x509.UniformResourceIdentifier(each) for each in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return pem(builder.sign(key, hashes.SHA256()))


CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
ADMIN = "spiffe://trial.example/admin/eve"


def test_pem_and_der_are_the_same_identity(authority: Authority, now: datetime) -> None:
    made = site(authority, now)
    who = identify(pem(made), authority.trust(), now=now)
    assert who == identify(der(made), authority.trust(), now=now)
    assert who == ("hospital-a", "site", serial_text(made), now + LIFE)


def test_time(authority: Authority, now: datetime) -> None:
    made, trusted = pem(site(authority, now)), authority.trust()
    identify(made, trusted, now=now - timedelta(minutes=4))  # a clock may be a little slow
    with pytest.raises(CertificateNotYetValid, match="clock"):
        identify(made, trusted, now=now - timedelta(minutes=6))
    who = identify(made, trusted, now=now + LIFE)
    with pytest.raises(CertificateExpired):
        identify(made, trusted, now=now + LIFE + timedelta(seconds=1))
    still_good(who, trusted, now=now + LIFE)
    with pytest.raises(CertificateExpired):
        still_good(who, trusted, now=now + LIFE + timedelta(seconds=1))


def test_a_revoked_certificate_is_refused_at_the_next_message(authority: Authority, now: datetime) -> None:
    made, trusted = pem(site(authority, now)), authority.trust()
    who, neighbour = identify(made, trusted, now=now), identify(pem(site(authority, now, "hospital-b")), trusted, now=now)
    still_good(who, trusted, now=now)
    revoke(authority, "hospital-a", now=now)
    with pytest.raises(CertificateRevoked):
        identify(made, trusted, now=now)
    with pytest.raises(CertificateRevoked):
        still_good(who, trusted, now=now)
    still_good(neighbour, trusted, now=now)


def test_another_authority_of_the_same_name_is_foreign(authority: Authority, other: Authority, now: datetime) -> None:
    assert authority.ca.subject == other.ca.subject
    with pytest.raises(ForeignCertificate, match="not of the authority"):
        identify(pem(site(other, now)), authority.trust(), now=now)
    with pytest.raises(ForeignCertificate):
        identify(other.ca_pem, authority.trust(), now=now)


def test_a_site_is_no_authority(authority: Authority, now: datetime) -> None:
    """What a site signs with its own key, it signs for nobody; whether it names itself or the authority as the issuer."""
    key, csr = make_request("hospital-a")
    made = enrol(authority, invite(authority, "hospital-a", now=now), csr, now=now)
    for issuer in (made.subject, authority.ca.subject):
        with pytest.raises(ForeignCertificate, match="not of the authority"):
            identify(forged(authority, key, now, [ADMIN], [CLIENT], issuer), authority.trust(), now=now)


@pytest.mark.parametrize(
    ("uris", "purposes"),
    [
        ([], [CLIENT]),
        ([ADMIN, "spiffe://trial.example/site/eve"], [CLIENT]),
        (["spiffe://other.example/admin/eve"], [CLIENT]),
        (["spiffe://trial.example/site/../admin/eve"], [CLIENT]),
        (["spiffe://trial.example"], [CLIENT]),
        ([ADMIN], []),
        ([ADMIN], [SERVER]),
        ([ADMIN], [CLIENT, SERVER]),
        (["spiffe://trial.example/coordinator/eve"], [CLIENT]),
    ],
)
def test_what_the_authority_would_not_make_is_refused_though_it_signed(
    authority: Authority, now: datetime, uris: list[str], purposes: list[Any]
) -> None:
    roles = ("site", "admin", "coordinator")
    made = forged(authority, authority.key, now, uris, purposes)
    with pytest.raises(ForeignCertificate):
        identify(made, authority.trust(), roles=roles, now=now)
    assert (
        identify(forged(authority, authority.key, now, [ADMIN], [CLIENT]), authority.trust(), roles=roles, now=now).role
        == "admin"
    )


def test_the_authority_itself_is_nobody(authority: Authority, now: datetime) -> None:
    with pytest.raises(ForeignCertificate):
        identify(authority.ca_pem, authority.trust(), roles=("coordinator", "admin", "site"), now=now)


def test_roles(authority: Authority, now: datetime) -> None:
    made, trusted = pem(site(authority, now, "eve", "researcher")), authority.trust()
    assert identify(made, trusted, roles=("researcher", "admin"), now=now).role == "researcher"
    with pytest.raises(WrongRole, match="eve is a researcher, and this takes one of: site"):
        identify(made, trusted, roles=("site",), now=now)
    with pytest.raises(WrongRole):
        identify(made, trusted, roles=("coordinator",), now=now)  # a site that looks for its coordinator finds no other role
    coordinator = pem(coordinator_certificate(authority))
    assert identify(coordinator, trusted, roles=("coordinator",), now=now).role == "coordinator"
    with pytest.raises(WrongRole):
        identify(coordinator, trusted, now=now)  # and a coordinator is not let in as a client


def test_the_authority_is_pinned(authority: Authority, other: Authority) -> None:
    shouted = ":".join(authority.sha256.upper()[i : i + 2] for i in range(0, 64, 2))  # as openssl writes it
    for text in (authority.sha256, shouted, f" {authority.sha256}\n"):
        assert trust(authority.ca_pem, sha256=text).domain == "trial.example"
    for text in (other.sha256, authority.sha256[:-1], "", "ü"):
        with pytest.raises(ForeignCertificate, match="in between"):
            trust(authority.ca_pem, sha256=text)


def test_only_an_authority_is_trusted(authority: Authority, now: datetime) -> None:
    for wrong in (pem(site(authority, now)), pem(coordinator_certificate(authority)), b"", b"-----BEGIN"):
        with pytest.raises(ForeignCertificate):
            trust(wrong)


def test_the_first_contact_finds_the_authority_in_the_chain_by_its_fingerprint(authority: Authority, other: Authority) -> None:
    leaf = coordinator_certificate(authority)
    assert authority_among([der(leaf), der(authority.ca)], authority.sha256) == authority.ca_pem
    assert fingerprint(authority.ca) == authority.sha256
    for chain in ([], [der(leaf)], [der(coordinator_certificate(other)), der(other.ca)]):
        with pytest.raises(ForeignCertificate, match="go no further"):
            authority_among(chain, authority.sha256)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_certificate_is_nobodys(authority: Authority, now: datetime, data: st.DataObject) -> None:
    whole = bytearray(der(coordinator_certificate(authority)))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IdentityError):
        identify(bytes(whole), authority.trust(), roles=("coordinator",), now=now)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200))
def test_noise_is_nobodys(authority: Authority, now: datetime, noise: bytes) -> None:
    with pytest.raises(ForeignCertificate):
        identify(noise, authority.trust(), now=now)
