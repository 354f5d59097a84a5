"""That gRPC's own TLS takes what is issued, and tells the server who calls."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from atoll.errors import IdentityError
from atoll.identity.authority import Authority, create, pem
from atoll.identity.credentials import Credentials, accept, of_coordinator, prepare
from atoll.identity.enrolment import enrol
from atoll.identity.peers import Trust, clock, identify
from atoll.identity.revocation import revoke
from atoll.identity.tokens import invite


@pytest.fixture
def now() -> datetime:
    return clock()


@pytest.fixture
def authority(tmp_path: Path, now: datetime) -> Authority:
    return create(tmp_path / "pki", "trial.example", ["localhost"], now=now)


class Greeter(grpc.GenericRpcHandler):  # type: ignore[misc]
    """It says to every caller who the caller is."""

    def __init__(self, trusted: Trust) -> None:
        self._trusted = trusted

    def service(self, details: Any) -> Any:
        """One method for all."""
        return grpc.unary_unary_rpc_method_handler(self._greet)

    def _greet(self, _: bytes, context: Any) -> bytes:
        (shown,) = context.auth_context()["x509_pem_cert"]
        try:
            return "{0.role} {0.name}".format(identify(shown, self._trusted, roles=("site",))).encode()
        except IdentityError as error:
            return context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))


@pytest.fixture
def port(authority: Authority) -> Iterator[int]:
    own = of_coordinator(authority)
    tls = grpc.ssl_server_credentials([(own.key_pem, own.chain_pem)], own.ca_pem, require_client_auth=True)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Greeter(authority.trust())])
    number = server.add_secure_port("localhost:0", tls)
    server.start()
    yield number
    server.stop(0).wait(20)


def join(authority: Authority, folder: Path, name: str, role: str = "site") -> Credentials:
    made = enrol(authority, invite(authority, name, role=role), prepare(folder, name))
    return accept(folder, name, pem(made), authority.ca_pem, sha256=authority.sha256)


def call(port: int, own: Credentials | None, ca_pem: bytes) -> str:
    pair = (own.key_pem, own.certificate_pem) if own else (None, None)
    with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(ca_pem, *pair)) as channel:
        answer: bytes = channel.unary_unary("/x/greet")(b"", timeout=20)
        return answer.decode()


def refusal(port: int, own: Credentials | None, ca_pem: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call(port, own, ca_pem)
    return raised.value.code()


def test_a_call_says_who_calls_until_it_is_revoked(authority: Authority, port: int, tmp_path: Path) -> None:
    site, neighbour = (join(authority, tmp_path / name, name) for name in ("hospital-a", "hospital-b"))
    assert call(port, site, authority.ca_pem) == "site hospital-a"
    revoke(authority, "hospital-a")
    assert refusal(port, site, authority.ca_pem) == grpc.StatusCode.PERMISSION_DENIED
    assert call(port, neighbour, authority.ca_pem) == "site hospital-b"
    researcher = join(authority, tmp_path / "eve", "eve", "researcher")
    assert refusal(port, researcher, authority.ca_pem) == grpc.StatusCode.PERMISSION_DENIED


def test_no_call_without_a_certificate_of_the_authority(authority: Authority, port: int, tmp_path: Path) -> None:
    other = create(tmp_path / "other", "trial.example", ["localhost"])
    stranger, site = join(other, tmp_path / "stranger", "hospital-a"), join(authority, tmp_path / "site", "hospital-a")
    for own, ca_pem in ((None, authority.ca_pem), (stranger, authority.ca_pem), (site, other.ca_pem)):
        assert refusal(port, own, ca_pem) == grpc.StatusCode.UNAVAILABLE
    assert call(port, site, authority.ca_pem) == "site hospital-a"


def test_a_site_cannot_pose_as_the_coordinator(authority: Authority, tmp_path: Path) -> None:
    thief, site = join(authority, tmp_path / "thief", "thief"), join(authority, tmp_path / "site", "hospital-a")
    tls = grpc.ssl_server_credentials([(thief.key_pem, thief.chain_pem)])
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Greeter(authority.trust())])
    number = server.add_secure_port("localhost:0", tls)
    server.start()
    try:
        assert refusal(number, site, authority.ca_pem) == grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop(0).wait(20)
