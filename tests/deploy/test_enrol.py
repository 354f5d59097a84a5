"""Certificates over a real port: the first contact, the token, the renewal, and who is in between."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from atoll.deploy.enrol import enrolled, listening, renewed
from atoll.errors import ForeignCertificate, IdentityError, RemoteError
from atoll.identity import messages
from atoll.identity.authority import Authority, create
from atoll.identity.credentials import load
from atoll.identity.peers import identify
from atoll.identity.requests import make_request
from atoll.identity.revocation import revoke
from atoll.identity.tokens import invite
from atoll.remote.enrolment import Enrolment, ask, shown_chain


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create(tmp_path / "pki", "trial.example", ["localhost", "127.0.0.1"])


@pytest.fixture
def port(authority: Authority) -> Iterator[Enrolment]:
    opened = listening(authority.folder, "127.0.0.1:0")
    yield opened
    opened.close()


def test_from_a_token_to_an_identity_and_its_successor(authority: Authority, port: Enrolment, tmp_path: Path) -> None:
    folder, token = tmp_path / "site", invite(authority, "hospital-a")
    first = enrolled(port.address, folder, "hospital-a", token, authority.sha256)
    assert (first.who.name, first.who.role) == ("hospital-a", "site")
    second = renewed(port.address, folder)
    assert load(folder) == second
    assert second.key_pem != first.key_pem
    for each in (first, second):
        assert identify(each.certificate_pem, authority.trust()) == each.who
    with pytest.raises(IdentityError, match="was used at"):
        enrolled(port.address, tmp_path / "thief", "hospital-a", token, authority.sha256)
    revoke(authority, "hospital-a")
    with pytest.raises(IdentityError, match="revoked"):
        renewed(port.address, folder)


def test_a_coordinator_that_dies_before_it_answers_is_asked_again(authority: Authority, tmp_path: Path) -> None:
    folder, token = tmp_path / "site", invite(authority, "hospital-a")
    first = listening(authority.folder, "127.0.0.1:0")
    real = first._answer

    def lost(question: bytes) -> bytes:
        real(question)
        raise OSError("the line is cut")

    first._answer = lost
    with pytest.raises(RemoteError, match="ask again"):
        enrolled(first.address, folder, "hospital-a", token, authority.sha256)
    first.close()
    again = listening(authority.folder, "127.0.0.1:0")
    got = enrolled(again.address, folder, "hospital-a", token, authority.sha256)
    again.close()
    with authority.ledger.transaction() as book:
        assert [each.serial for each in book.certificates() if each.name == "hospital-a"] == [got.who.serial]


def test_another_server_is_not_told_the_token(authority: Authority, tmp_path: Path) -> None:
    other = create(tmp_path / "other", "trial.example", ["localhost", "127.0.0.1"])
    token, heard = invite(authority, "hospital-a"), list[bytes]()
    between = listening(other.folder, "127.0.0.1:0")
    between._answer = lambda question: heard.append(question) or b""  # type: ignore[func-returns-value]
    with pytest.raises(ForeignCertificate, match="go no further"):
        enrolled(between.address, tmp_path / "site", "hospital-a", token, authority.sha256)
    with pytest.raises(RemoteError):  # nor when it shows the right authority's certificate, without having its key
        ask(between.address, authority.ca_pem, b"the token", timeout_s=10)
    between.close()
    assert heard == []


def test_a_renewal_of_anothers_certificate_is_refused(authority: Authority, port: Enrolment, tmp_path: Path) -> None:
    a, b = (enrolled(port.address, tmp_path / n, n, invite(authority, n), authority.sha256) for n in ("a", "b"))
    stolen = replace(a, key_pem=b.key_pem)  # a certificate is public
    for name in ("a", "b"):
        with pytest.raises(IdentityError, match="not signed with the key"):
            ask(port.address, a.ca_pem, messages.with_certificate(stolen, make_request(name)[1]))
    with pytest.raises(IdentityError, match="nobody renews another's"):
        ask(port.address, b.ca_pem, messages.with_certificate(b, make_request("a")[1]))


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"token": 1, "csr": ""}',
        b'{"token": "x"}',
        b"\xff",
        b"[" * 9000,
        b'{"token":"x","csr":"\\ud800"}',
        b'{"certificate": "", "proof": "", "csr": ""}',
        b'{"token": "\\u0000.x", "csr": ""}',
    ],
)
def test_bad_questions_are_refused_and_harm_nothing(
    authority: Authority, port: Enrolment, tmp_path: Path, question: bytes
) -> None:
    with pytest.raises(IdentityError):
        ask(port.address, authority.ca_pem, question)
    assert enrolled(port.address, tmp_path / "a", "a", invite(authority, "a"), authority.sha256).who.name == "a"


def test_a_long_question_is_not_read(authority: Authority, port: Enrolment) -> None:
    big = b" " * (1 << 22)
    channel_options = [("grpc.max_send_message_length", 1 << 23)]
    with grpc.secure_channel(port.address, grpc.ssl_channel_credentials(authority.ca_pem), channel_options) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/atoll.remote.v1.Enrolment/Enrol")(big, timeout=20)
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/atoll.remote.v1.Coordinator/Ask")(b"", timeout=20)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_who_does_not_answer_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RemoteError, match="not reached"):
            shown_chain(address, timeout_s=0.3)
    with pytest.raises(RemoteError, match="not reached"):
        shown_chain(address, timeout_s=0.3)
    for wrong in ("nowhere", "localhost:", "localhost:x"):
        with pytest.raises(RemoteError, match="HOST:PORT"):
            shown_chain(wrong)


def test_sixteen_at_once(authority: Authority, port: Enrolment, tmp_path: Path) -> None:
    """One token, sixteen callers with keys of their own: one gets in."""
    token, got = invite(authority, "hospital-a"), list[str]()

    def one(i: int) -> None:
        try:
            got.append(enrolled(port.address, tmp_path / str(i), "hospital-a", token, authority.sha256).who.serial)
        except IdentityError as refused:
            got.append("used" if "was used at" in str(refused) else str(refused))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 16
    assert got.count("used") == 15, got
    with authority.ledger.transaction() as book:
        assert [each.serial for each in book.certificates() if each.name == "hospital-a"] == [
            each for each in got if each != "used"
        ]
