from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from atoll.errors import IdentityError
from atoll.identity.authority import Authority, load, pem
from atoll.identity.enrolment import enrol
from atoll.identity.peers import identify, serial_text
from atoll.identity.requests import make_request
from atoll.identity.revocation import LIST, RevokedFile, read_list, revoke
from atoll.identity.tokens import invite


def site(authority: Authority, name: str, now: datetime) -> str:
    return serial_text(enrol(authority, invite(authority, name, now=now), make_request(name)[1], now=now))


def listed(authority: Authority) -> frozenset[str]:
    return read_list((authority.folder / LIST).read_bytes(), authority.ca)


def test_by_name_and_by_serial(authority: Authority, now: datetime) -> None:
    a1, a2, a3 = (site(authority, "a", now) for _ in range(3))
    b = site(authority, "b", now)
    assert listed(authority) == set()
    assert [each.serial for each in revoke(authority, a1.upper(), now=now)] == [a1]
    assert listed(authority) == {a1}
    assert {each.serial for each in revoke(authority, "a", now=now)} == {a2, a3}
    assert listed(authority) == {a1, a2, a3}
    assert revoke(authority, "a", now=now) == []  # said twice, it is as well
    assert b not in listed(load(authority.folder))


def test_nothing_to_revoke_is_an_error(authority: Authority, now: datetime) -> None:
    with pytest.raises(IdentityError, match="atoll pki list"):
        revoke(authority, "hospital-x", now=now)


def test_the_coordinator_is_not_revoked_but_replaced(authority: Authority, now: datetime) -> None:
    with authority.ledger.transaction() as book:
        (coordinator,) = book.certificates()
    for which in ("coordinator", coordinator.serial):
        with pytest.raises(IdentityError, match="new authority"):
            revoke(authority, which, now=now)


def test_at_once_none_is_lost(authority: Authority, now: datetime) -> None:
    names = [f"site-{i}" for i in range(8)]
    serials = {site(authority, name, now) for name in names}
    start = threading.Barrier(8)

    def one(name: str) -> None:
        start.wait(30)
        revoke(authority, name, now=now)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, names, timeout=60))
    assert listed(authority) == serials


def test_a_list_that_is_not_the_authoritys_lets_nobody_in(authority: Authority, other: Authority, now: datetime) -> None:
    made = enrol(authority, invite(authority, "a", now=now), make_request("a")[1], now=now)
    file, trusted = authority.folder / LIST, authority.trust()
    identify(pem(made), trusted, now=now)
    good = file.read_bytes()
    for wrong in ((other.folder / LIST).read_bytes(), b"", good[: len(good) // 2], authority.ca_pem):
        file.write_bytes(wrong)
        with pytest.raises(IdentityError):
            identify(pem(made), trusted, now=now)
    file.unlink()
    with pytest.raises(IdentityError, match="can't be read"):
        identify(pem(made), trusted, now=now)
    file.write_bytes(good)
    identify(pem(made), trusted, now=now)


def test_a_reader_follows_the_file_and_reads_it_only_when_it_changed(
    authority: Authority, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atoll.identity import revocation

    reads: list[Path] = []
    real = revocation.files.read

    def counted(path: Path) -> bytes:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(revocation.files, "read", counted)
    reader = RevokedFile(authority.folder / LIST, authority.ca)
    for i in range(3):
        serial = site(authority, f"site-{i}", now)
        for _ in range(5):
            assert serial not in reader()
        revoke(authority, f"site-{i}", now=now)
        for _ in range(5):
            assert serial in reader()
    assert len(reads) == 4


def test_a_death_before_the_list_is_written_revokes_nothing_half(
    authority: Authority, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atoll.identity import revocation

    serial = site(authority, "a", now)
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(revocation.files, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            revoke(authority, "a", now=now)
    with authority.ledger.transaction() as book:
        assert all(each.revoked is None for each in book.certificates())
    assert [each.serial for each in revoke(authority, "a", now=now)] == [serial]
    assert listed(authority) == {serial}
