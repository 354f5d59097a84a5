"""One text from `atoll pki token` is all that a site needs: it gets its certificate with it, once, and joins."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atoll.deploy.enrol import IDENTITY, beside, bought, identity_at, listening
from atoll.errors import ConfigError, IdentityError, NameRefused, RemoteError, TokenRefused
from atoll.identity import revocation
from atoll.identity.authority import Authority, create
from atoll.identity.credentials import load
from atoll.identity.tokens import Ticket, invite, ticket
from atoll.remote.enrolment import Enrolment
from tests.deploy.real import told


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create(tmp_path / "pki", "trial.example", ["localhost", "127.0.0.1"])


@pytest.fixture
def port(authority: Authority) -> Iterator[Enrolment]:
    opened = listening(authority.folder, "127.0.0.1:0")
    yield opened
    opened.close()


def given(authority: Authority, name: str = "hospital-a", **how: object) -> str:
    return str(Ticket(name, invite(authority, name, **how), authority.sha256))  # type: ignore[arg-type]


def serials(authority: Authority) -> list[str]:
    with authority.ledger.transaction() as book:
        return [each.serial for each in book.certificates() if each.role == "site"]


def test_a_ticket_says_who_what_and_whose(authority: Authority) -> None:
    text = given(authority, "st-mary.cardiology")
    assert ticket(f" {text}\n") == (
        "st-mary.cardiology",
        ticket(text).token,
        authority.sha256,
    )
    for broken in ("", "x", text[:-1], text.partition(".")[2].partition(".")[2], ticket(text).token, text + "0"):
        with pytest.raises(TokenRefused, match="copy it whole"):
            ticket(broken)
    with pytest.raises(NameRefused):
        ticket(text.replace("st-mary", "../mary"))


def test_it_is_given_at_each_start_and_used_once(authority: Authority, port: Enrolment, tmp_path: Path) -> None:
    folder, text, said = tmp_path / "site", given(authority), list[str]()
    for _ in range(3):
        assert identity_at(folder, text, port.address, "localhost:1", False, said.append) == folder
    assert len(said) == 1
    assert "the certificate of hospital-a, good until" in said[0]
    assert serials(authority) == [load(folder).who.serial]
    port.close()  # nobody is asked any more
    assert bought(port.address, folder, text) is None


def test_after_a_kill_at_any_step_the_same_certificate_comes(authority: Authority, port: Enrolment, tmp_path: Path) -> None:
    folder, text = tmp_path / "site", given(authority)
    first = bought(port.address, folder, text)
    assert first is not None
    (folder / "token").write_text(f"asking {ticket(text).id}")  # killed before the last step
    assert bought(port.address, folder, text) is None
    (folder / "next.key").write_bytes(first.key_pem)  # killed before the file of the request was dropped
    (folder / "next.key").chmod(0o600)
    assert bought(port.address, folder, text) is None
    (folder / "identity.pem").unlink()  # killed before the answer was kept
    again = bought(port.address, folder, text)
    assert again == first
    assert serials(authority) == [first.who.serial]


def test_a_new_token_after_a_revocation_buys_a_new_certificate(authority: Authority, port: Enrolment, tmp_path: Path) -> None:
    folder, text = tmp_path / "site", given(authority)
    first = bought(port.address, folder, text)
    revocation.revoke(authority, "hospital-a")
    second = bought(port.address, folder, given(authority))
    assert first is not None
    assert second is not None
    assert load(folder) == second
    assert first.who.serial != second.who.serial


def test_what_can_not_be_bought_is_said_in_a_sentence(authority: Authority, port: Enrolment, tmp_path: Path) -> None:
    text = given(authority)
    assert bought(port.address, tmp_path / "first", text)
    used = told(lambda: bought(port.address, tmp_path / "second", text))
    assert used.startswith("the token for hospital-a was used at ")
    assert "ask for a new one" in used
    late = given(authority, "hospital-b", life=timedelta(hours=1), now=datetime.now(UTC) - timedelta(hours=2))
    assert told(lambda: bought(port.address, tmp_path / "third", late)).startswith("the token for hospital-b expired at ")
    with pytest.raises(IdentityError, match="holds the identity of hospital-a, and the token is for hospital-c"):
        bought(port.address, tmp_path / "first", given(authority, "hospital-c"))
    with pytest.raises(RemoteError, match="not reached"):
        bought("127.0.0.1:1", tmp_path / "fourth", given(authority, "hospital-d"))
    assert "go no further" in told(lambda: bought(port.address, tmp_path / "fifth", text[:-64] + "0" * 64))


def test_where_the_identity_and_the_port_are(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert identity_at(None, None, None, "localhost:7433", True, print) is None
    assert identity_at(None, None, None, "localhost:7433", False, print) is None  # `as_site` says what is missing
    IDENTITY.mkdir()
    (IDENTITY / "identity.pem").touch()
    assert identity_at(None, None, None, "localhost:7433", False, print) == IDENTITY
    assert identity_at(None, None, None, "localhost:7433", True, print) is None
    assert identity_at(Path("own"), None, None, "localhost:7433", False, print) == Path("own")
    assert beside("[::1]:7433") == "[::1]:7434"
    for wrong in ("localhost", "localhost:", "localhost:65535", ":1"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            beside(wrong)


def test_a_site_may_be_started_before_its_coordinator(authority: Authority, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    said, opened = list[str](), list[Enrolment]()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            opened.append(listening(authority.folder, address))

    text = given(authority)
    try:
        assert identity_at(tmp_path / "site", text, address, "localhost:1", False, say, again_s=0.01) == tmp_path / "site"
    finally:
        opened[0].close()
    assert [line.partition(" ")[0] for line in said] == [address, f"{tmp_path / 'site'}:"]
    assert said[0].endswith("; it is tried again until somebody answers")
