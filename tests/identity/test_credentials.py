from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

from atoll.errors import CertificateExpired, ForeignCertificate, IdentityError, NameRefused
from atoll.identity import credentials, files
from atoll.identity.authority import LIFE, Authority, create, load, pem
from atoll.identity.credentials import Credentials, accept, of_coordinator, prepare
from atoll.identity.enrolment import enrol, renew
from atoll.identity.tokens import invite


def joined(authority: Authority, folder: Path, now: datetime, name: str = "hospital-a") -> Credentials:
    made = enrol(authority, invite(authority, name, now=now), prepare(folder, name), now=now)
    return accept(folder, name, pem(made), authority.ca_pem, sha256=authority.sha256, now=now)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_a_site_keeps(authority: Authority, tmp_path: Path, now: datetime) -> None:
    held = joined(authority, tmp_path / "site", now)
    assert held == credentials.load(tmp_path / "site", now=now)
    assert (held.who.name, held.who.role) == ("hospital-a", "site")
    assert sorted(file.name for file in (tmp_path / "site").iterdir()) == ["ca.pem", "identity.pem"]
    assert mode(tmp_path / "site" / "identity.pem") == 0o600
    assert mode(tmp_path / "site") == 0o700


def test_no_key_is_shown(authority: Authority, tmp_path: Path, now: datetime) -> None:
    held = joined(authority, tmp_path / "site", now)
    secret = held.key_pem.decode().splitlines()[1]
    assert secret not in repr(held)
    assert secret not in str(held)
    assert held.key_pem not in held.chain_pem
    assert "PRIVATE" not in repr(authority)


def test_a_crash_before_the_answer_asks_again_with_the_same_key(authority: Authority, tmp_path: Path, now: datetime) -> None:
    folder, token = tmp_path / "site", invite(authority, "hospital-a", now=now)
    lost = enrol(authority, token, prepare(folder, "hospital-a"), now=now)
    made = enrol(authority, token, prepare(folder, "hospital-a"), now=now)
    assert made == lost
    accept(folder, "hospital-a", pem(made), authority.ca_pem, sha256=authority.sha256, now=now)


def test_a_renewal_takes_the_place_at_once(authority: Authority, tmp_path: Path, now: datetime) -> None:
    folder, later = tmp_path / "site", now + LIFE * 2 / 3
    old = joined(authority, folder, now)
    assert not old.due(now)
    assert old.due(later)
    new = renew(authority, old.certificate_pem, prepare(folder, "hospital-a"), now=later)
    assert credentials.load(folder, now=later) == old  # until the answer is here
    held = accept(folder, "hospital-a", pem(new), authority.ca_pem, now=later)
    assert held == credentials.load(folder, now=later)
    assert held.who.serial != old.who.serial


def test_a_crash_between_the_two_last_steps_of_a_renewal(authority: Authority, tmp_path: Path, now: datetime) -> None:
    folder = tmp_path / "site"
    held = joined(authority, folder, now)
    files.write(folder / "next.key", held.key_pem, private=True)  # what is left when `accept` dies before its last line
    new = renew(authority, held.certificate_pem, prepare(folder, "hospital-a"), now=now)
    assert accept(folder, "hospital-a", pem(new), authority.ca_pem, now=now).key_pem != held.key_pem


def test_what_was_not_asked_for_is_not_kept(authority: Authority, other: Authority, tmp_path: Path, now: datetime) -> None:
    folder = tmp_path / "site"
    csr = prepare(folder, "hospital-a")
    mine = pem(enrol(authority, invite(authority, "hospital-a", now=now), csr, now=now))
    theirs = joined(authority, tmp_path / "b", now, "hospital-b").certificate_pem
    with pytest.raises(IdentityError, match="hospital-b"):
        accept(folder, "hospital-a", theirs, authority.ca_pem, sha256=authority.sha256, now=now)
    with pytest.raises(ForeignCertificate, match="in between"):
        accept(folder, "hospital-a", mine, authority.ca_pem, sha256=other.sha256, now=now)
    with pytest.raises(ForeignCertificate):
        accept(folder, "hospital-a", mine, other.ca_pem, sha256=other.sha256, now=now)
    with pytest.raises(IdentityError, match="the SHA-256 that came with the token"):
        accept(folder, "hospital-a", mine, authority.ca_pem, now=now)
    assert not (folder / "identity.pem").exists()
    accept(folder, "hospital-a", mine, authority.ca_pem, sha256=authority.sha256, now=now)


def test_a_folder_has_one_authority(authority: Authority, other: Authority, tmp_path: Path, now: datetime) -> None:
    held = joined(authority, tmp_path / "site", now)
    made = enrol(other, invite(other, "hospital-a", now=now), prepare(tmp_path / "site", "hospital-a"), now=now)
    with pytest.raises(IdentityError, match="another authority"):
        accept(tmp_path / "site", "hospital-a", pem(made), other.ca_pem, sha256=other.sha256, now=now)
    assert credentials.load(tmp_path / "site", now=now) == held


def test_an_expired_identity_is_not_loaded(authority: Authority, tmp_path: Path, now: datetime) -> None:
    joined(authority, tmp_path / "site", now)
    with pytest.raises(CertificateExpired, match="new token"):
        credentials.load(tmp_path / "site", now=now + 2 * LIFE)


def test_tricks_in_a_name_make_no_file(tmp_path: Path) -> None:
    with pytest.raises(NameRefused):
        prepare(tmp_path / "site", "../other")
    assert list(tmp_path.iterdir()) == []


def test_no_identity_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="token"):
        credentials.load(tmp_path)


@pytest.mark.parametrize("permissions", [0o644, 0o640, 0o604, 0o620, 0o602])
def test_a_key_that_others_can_read_is_not_used(authority: Authority, tmp_path: Path, now: datetime, permissions: int) -> None:
    joined(authority, tmp_path / "site", now)
    uses = {
        tmp_path / "site" / "identity.pem": lambda: credentials.load(tmp_path / "site", now=now),
        authority.folder / "ca.key": lambda: load(authority.folder),
        authority.folder / "coordinator.pem": lambda: of_coordinator(authority, now=now),
    }
    for path, use in uses.items():
        use()
        path.chmod(permissions)
        with pytest.raises(IdentityError, match=f"mode {permissions:04o}.*chmod 600"):
            use()
        path.chmod(0o400)
        use()


def test_private_files_are_private_whatever_the_umask(tmp_path: Path, now: datetime) -> None:
    before = os.umask(0)
    try:
        made = create(tmp_path / "pki", "trial.example", ["localhost"], now=now)
        joined(made, tmp_path / "site", now)
    finally:
        os.umask(before)
    for name in ("ca.key", "coordinator.pem", "ledger.sqlite"):
        assert mode(made.folder / name) == 0o600, name
    assert mode(made.folder) == mode(tmp_path / "site") == 0o700
    assert mode(tmp_path / "site" / "identity.pem") == 0o600


@pytest.mark.parametrize("wrong", [b"", b"nothing", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_is_said_and_not_shown(authority: Authority, tmp_path: Path, now: datetime, wrong: bytes) -> None:
    held = joined(authority, tmp_path / "site", now)
    path = tmp_path / "site" / "identity.pem"
    for content in (wrong, wrong + held.certificate_pem, held.key_pem):
        path.write_bytes(content)
        with pytest.raises(IdentityError) as raised:
            credentials.load(tmp_path / "site", now=now)
        assert "BEGIN" not in str(raised.value)


def test_the_authoritys_folder(tmp_path: Path, authority: Authority, other: Authority, now: datetime) -> None:
    with pytest.raises(IdentityError, match="new one"):
        create(authority.folder, "trial.example", ["localhost"], now=now)
    assert load(authority.folder).sha256 == authority.sha256  # it is as it was
    with pytest.raises(IdentityError, match="atoll pki init"):
        load(tmp_path / "absent")
    for domain, hosts in (("../x", ["localhost"]), ("trial.example", []), ("trial.example", ["*"])):
        with pytest.raises(NameRefused):
            create(tmp_path / "new", domain, hosts, now=now)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "pki"]
    (authority.folder / "ca.pem").write_bytes(other.ca_pem)
    with pytest.raises(IdentityError, match="belong together"):
        load(authority.folder)


def test_a_folder_that_waits_for_nothing_accepts_nothing(authority: Authority, tmp_path: Path, now: datetime) -> None:
    held = joined(authority, tmp_path / "site", now)
    with pytest.raises(IdentityError, match="waits for no certificate"):
        accept(tmp_path / "site", "hospital-a", held.certificate_pem, held.ca_pem, now=now)
