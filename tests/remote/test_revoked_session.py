"""A session does not outlive its certificate: what was revoked is not heard at its next message, and a neighbour is."""

from __future__ import annotations

from pathlib import Path

from atoll.deploy.trust import as_coordinator
from atoll.identity import credentials, enrolment, revocation, tokens
from atoll.identity.authority import Authority, create, pem
from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.values import Credentials, Limits
from tests.remote.ends import until

OFTEN = Limits(retry_s=0.01, ping_s=0.2)


def enrolled(authority: Authority, folder: Path, name: str) -> Credentials:
    made = enrolment.enrol(authority, tokens.invite(authority, name), credentials.prepare(folder, name))
    held = credentials.accept(folder, name, pem(made), authority.ca_pem, sha256=authority.sha256)
    return Credentials(held.key_pem, held.chain_pem, held.ca_pem)


def test_a_revoked_site_loses_its_session(tmp_path: Path) -> None:
    authority = create(tmp_path / "pki", "trial.example", ["localhost"])
    mine, who = as_coordinator(tmp_path / "pki", insecure=False)  # which reads a certificate once
    hub = Hub("localhost:0", mine, tmp_path / "hub", who=who, limits=OFTEN)
    north, south = (
        Link(hub.address, enrolled(authority, tmp_path / f"id-{name}", name), name, tmp_path / name, limits=OFTEN)
        for name in ("north", "south")
    )
    try:
        until(lambda: north.online and south.online, north.trouble)
        revocation.revoke(authority, "north")  # and nobody tells the hub
        until(lambda: "revoked" in north.trouble, north.trouble)
        until(lambda: set(hub.sites()) == {"south"}, str(hub.sites()))
        assert south.online
    finally:
        north.close()
        south.close()
        hub.stop(0.0)
