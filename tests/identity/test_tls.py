"""Real handshakes with Python's ssl, both ends with what the authority issued, over a socket pair."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from atoll.identity.authority import Authority, create, pem, renew_coordinator
from atoll.identity.credentials import Credentials, accept, of_coordinator, prepare
from atoll.identity.enrolment import enrol, renew
from atoll.identity.peers import authority_among, clock, identify
from atoll.identity.revocation import LIST, revoke
from atoll.identity.tokens import invite

Outcome = bytes | Exception  # the certificate that the other end showed, or why there was no handshake


@pytest.fixture
def now() -> datetime:
    """OpenSSL looks at the machine's clock, so what is issued here is issued now."""
    return clock()


def join(authority: Authority, folder: Path, now: datetime, name: str = "hospital-a") -> Credentials:
    made = enrol(authority, invite(authority, name, now=now), prepare(folder, name), now=now)
    return accept(folder, name, pem(made), authority.ca_pem, sha256=authority.sha256, now=now)


def context(side: int, own: Credentials | None, ca_pem: bytes, folder: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(side)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    if side == ssl.PROTOCOL_TLS_SERVER:
        made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=ca_pem.decode())
    if own is not None:
        file = folder / f"{own.who.serial}.pem"
        file.write_bytes(own.key_pem + own.chain_pem)
        made.load_cert_chain(file)
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost") -> tuple[Outcome, Outcome]:
    """(what the server saw, what the client saw): with TLS 1.3 a client is done before its certificate was looked at."""
    ours, theirs = socket.socketpair()
    seen: list[Outcome] = []

    def serve() -> None:
        ours.settimeout(20)
        try:
            with server.wrap_socket(ours, server_side=True) as line:
                line.sendall(line.recv(1))
                seen.append(line.getpeercert(binary_form=True) or b"")
        except OSError as error:
            seen.append(error)
        finally:
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    theirs.settimeout(20)
    try:
        with client.wrap_socket(theirs, server_hostname=host) as line:
            line.sendall(b"x")
            answer: Outcome = line.getpeercert(binary_form=True) or b"" if line.recv(1) == b"x" else EOFError()
    except OSError as error:
        answer = error
    finally:
        theirs.close()
        thread.join(30)
    return seen[0], answer


def contexts(
    server: Credentials, client: Credentials | None, ca_pem: bytes, folder: Path
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return (
        context(ssl.PROTOCOL_TLS_SERVER, server, ca_pem, folder),
        context(ssl.PROTOCOL_TLS_CLIENT, client, ca_pem, folder),
    )


@pytest.fixture
def coordinator(authority: Authority, now: datetime) -> Credentials:
    return of_coordinator(authority, now=now)


@pytest.fixture
def authority(tmp_path: Path, now: datetime) -> Authority:
    return create(tmp_path / "pki", "trial.example", ["localhost", "127.0.0.1"], now=now)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_both_ends_know_each_other(
    authority: Authority, coordinator: Credentials, tmp_path: Path, now: datetime, host: str
) -> None:
    site = join(authority, tmp_path / "site", now)
    seen, answer = handshake(*contexts(coordinator, site, authority.ca_pem, tmp_path), host=host)
    assert isinstance(seen, bytes), seen
    assert isinstance(answer, bytes), answer
    assert identify(seen, authority.trust(), roles=("site",)) == site.who
    assert identify(answer, site.trust(), roles=("coordinator",)) == coordinator.who


def test_another_host_is_refused_by_the_site(
    authority: Authority, coordinator: Credentials, tmp_path: Path, now: datetime
) -> None:
    site = join(authority, tmp_path / "site", now)
    _, answer = handshake(*contexts(coordinator, site, authority.ca_pem, tmp_path), host="elsewhere.example")
    assert isinstance(answer, ssl.SSLCertVerificationError)
    assert "match" in str(answer)


def refused(outcome: tuple[Outcome, Outcome], why: str) -> None:
    seen, answer = outcome
    assert isinstance(seen, ssl.SSLError), seen
    assert why in str(seen).lower()
    assert isinstance(answer, Exception), "the client was served"


def test_nobody_comes_in_without_a_certificate(authority: Authority, coordinator: Credentials, tmp_path: Path) -> None:
    refused(handshake(*contexts(coordinator, None, authority.ca_pem, tmp_path)), "did not return a certificate")


def test_nobody_comes_in_with_another_authoritys(
    authority: Authority, coordinator: Credentials, tmp_path: Path, now: datetime
) -> None:
    other = create(tmp_path / "other", "trial.example", ["localhost"], now=now)
    stranger = join(other, tmp_path / "stranger", now)
    refused(handshake(*contexts(coordinator, stranger, authority.ca_pem, tmp_path)), "certificate verify failed")
    impostor = of_coordinator(other, now=now)
    site = join(authority, tmp_path / "site", now)
    _, answer = handshake(*contexts(impostor, site, authority.ca_pem, tmp_path))
    assert isinstance(answer, ssl.SSLCertVerificationError)  # nor is a site taken in by another coordinator


def test_nobody_comes_in_with_an_expired_one(tmp_path: Path, now: datetime) -> None:
    then = now - timedelta(days=200)
    authority = create(tmp_path / "pki", "trial.example", ["localhost"], now=then)
    late = join(authority, tmp_path / "site", then)
    server, client = contexts(of_coordinator(authority, now=now), late, authority.ca_pem, tmp_path)
    refused(handshake(server, client), "expired")


def test_nobody_comes_in_with_a_revoked_one(
    authority: Authority, coordinator: Credentials, tmp_path: Path, now: datetime
) -> None:
    site, neighbour = (join(authority, tmp_path / name, now, name) for name in ("hospital-a", "hospital-b"))
    revoke(authority, "hospital-a")
    for who, good in ((site, False), (neighbour, True)):
        server, client = contexts(coordinator, who, authority.ca_pem, tmp_path)
        server.load_verify_locations(authority.folder / LIST)
        server.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        outcome = handshake(server, client)
        if good:
            assert isinstance(outcome[0], bytes), outcome[0]
        else:
            refused(outcome, "revoked")


def test_a_site_cannot_pose_as_the_coordinator(authority: Authority, tmp_path: Path, now: datetime) -> None:
    thief, site = (join(authority, tmp_path / name, now, name) for name in ("thief", "hospital-a"))
    server, client = contexts(thief, site, authority.ca_pem, tmp_path)
    client.check_hostname = False  # even then: it is not made for a server
    _, answer = handshake(server, client)
    assert isinstance(answer, ssl.SSLCertVerificationError)
    assert "purpose" in str(answer)


def test_nor_can_the_coordinator_pose_as_a_site(authority: Authority, coordinator: Credentials, tmp_path: Path) -> None:
    refused(handshake(*contexts(coordinator, coordinator, authority.ca_pem, tmp_path)), "purpose")


def test_old_and_new_certificates_meet_in_all_four_ways(
    authority: Authority, coordinator: Credentials, tmp_path: Path, now: datetime
) -> None:
    folder = tmp_path / "site"
    old = join(authority, folder, now)
    made = renew(authority, old.certificate_pem, prepare(folder, "hospital-a"), now=now)
    new = accept(folder, "hospital-a", pem(made), authority.ca_pem, now=now)
    renew_coordinator(authority, now=now)
    for server in (coordinator, of_coordinator(authority, now=now)):
        for client in (old, new):
            seen, answer = handshake(*contexts(server, client, authority.ca_pem, tmp_path))
            assert isinstance(seen, bytes), seen
            assert isinstance(answer, bytes), answer
            assert identify(seen, authority.trust()) == client.who


def test_the_first_contact(authority: Authority, coordinator: Credentials, tmp_path: Path) -> None:
    """A site that knows nothing but a fingerprint looks at what the server shows, without believing it, and finds the
    authority among it.
    """
    server = context(ssl.PROTOCOL_TLS_SERVER, coordinator, authority.ca_pem, tmp_path)
    server.verify_mode = ssl.CERT_NONE
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    seen, answer = handshake(server, client)
    assert seen == b""  # it showed nothing
    assert isinstance(answer, bytes), answer
    chain = ssl.PEM_cert_to_DER_cert(coordinator.chain_pem.decode().split("-----END")[0] + "-----END CERTIFICATE-----\n")
    assert answer == chain
    assert authority_among([answer, authority.ca_pem], authority.sha256) == authority.ca_pem
