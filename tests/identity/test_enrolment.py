from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.errors import CertificateRevoked, NameRefused, RequestRefused, TokenRefused
from atoll.identity import enrolment
from atoll.identity.authority import LIFE, Authority, pem
from atoll.identity.enrolment import enrol
from atoll.identity.peers import identify, serial_text
from atoll.identity.requests import make_request, request_for
from atoll.identity.revocation import revoke
from atoll.identity.tokens import invite

DAY = timedelta(hours=24)


def issued(authority: Authority, name: str) -> list[str]:
    with authority.ledger.transaction() as book:
        return [each.serial for each in book.certificates() if each.name == name]


@pytest.mark.parametrize("role", ["site", "researcher", "auditor", "admin"])
def test_a_token_buys_its_name_and_its_role(authority: Authority, now: datetime, role: str) -> None:
    key, csr = make_request("hospital-a")
    made = enrol(authority, invite(authority, "hospital-a", role=role, now=now), csr, now=now)
    who = identify(pem(made), authority.trust(), now=now)
    assert (who.name, who.role, who.expires) == ("hospital-a", role, now + LIFE)
    assert made.public_key() == key.public_key()
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [each.value for each in names] == [f"spiffe://trial.example/{role}/hospital-a"]


def test_a_site_cannot_become_another(authority: Authority, now: datetime) -> None:
    token = invite(authority, "hospital-a", now=now)
    with pytest.raises(RequestRefused, match="hospital-b"):
        enrol(authority, token, make_request("hospital-b")[1], now=now)
    assert issued(authority, "hospital-b") == []
    enrol(authority, token, make_request("hospital-a")[1], now=now)  # a mistake costs no token


def together(work: Callable[[int], x509.Certificate | TokenRefused], many: int) -> list[x509.Certificate | TokenRefused]:
    start = threading.Barrier(many)

    def one(i: int) -> x509.Certificate | TokenRefused:
        start.wait(30)
        try:
            return work(i)
        except TokenRefused as refused:
            return refused

    with ThreadPoolExecutor(many) as pool:
        return list(pool.map(one, range(many), timeout=120))


def test_of_sixteen_claims_at_once_one_wins(authority: Authority, now: datetime) -> None:
    token = invite(authority, "hospital-a", now=now)
    requests = [make_request("hospital-a")[1] for _ in range(16)]
    answers = together(lambda i: enrol(authority, token, requests[i], now=now), 16)
    won = [each for each in answers if isinstance(each, x509.Certificate)]
    assert len(won) == 1
    assert issued(authority, "hospital-a") == [serial_text(won[0])]


def test_of_sixteen_repeats_of_one_claim_all_get_the_one_certificate(authority: Authority, now: datetime) -> None:
    token, csr = invite(authority, "hospital-a", now=now), make_request("hospital-a")[1]
    answers = together(lambda _: enrol(authority, token, csr, now=now), 16)
    assert {serial_text(each) if isinstance(each, x509.Certificate) else each for each in answers} == {
        *issued(authority, "hospital-a")
    }
    assert len(issued(authority, "hospital-a")) == 1


def test_an_answer_that_was_lost_is_given_again_even_when_the_token_has_expired(authority: Authority, now: datetime) -> None:
    token, (key, csr) = invite(authority, "hospital-a", now=now), make_request("hospital-a")
    first = enrol(authority, token, csr, now=now)
    again = request_for("hospital-a", key)  # signed anew after a restart: the key is the same, the bytes are not
    assert again != csr
    assert enrol(authority, token, again, now=now + 2 * DAY) == first


def test_a_used_token_is_refused_with_what_to_do(authority: Authority, now: datetime) -> None:
    token = invite(authority, "hospital-a", now=now)
    enrol(authority, token, make_request("hospital-a")[1], now=now)
    with pytest.raises(TokenRefused, match=r"was used at 2026-03-01 12:00 UTC.*atoll pki revoke hospital-a"):
        enrol(authority, token, make_request("hospital-a")[1], now=now)


def test_a_token_expires(authority: Authority, now: datetime) -> None:
    token, late = invite(authority, "hospital-a", life=DAY, now=now), invite(authority, "hospital-a", life=DAY, now=now)
    with pytest.raises(TokenRefused, match="expired at 2026-03-02 12:00 UTC"):
        enrol(authority, late, make_request("hospital-a")[1], now=now + DAY)
    enrol(authority, token, make_request("hospital-a")[1], now=now + DAY - timedelta(seconds=1))


def test_a_revoked_name_has_no_token_left(authority: Authority, now: datetime) -> None:
    token, (_, csr) = invite(authority, "hospital-a", now=now), make_request("hospital-a")
    enrol(authority, token, csr, now=now)
    unused = invite(authority, "hospital-a", now=now)
    revoke(authority, "hospital-a", now=now)
    with pytest.raises(TokenRefused, match="withdrawn"):
        enrol(authority, unused, make_request("hospital-a")[1], now=now)
    with pytest.raises(CertificateRevoked):
        enrol(authority, token, csr, now=now)  # nor is the old answer given again
    fresh = invite(authority, "hospital-a", now=now)
    with pytest.raises(RequestRefused, match="new key"):
        enrol(authority, fresh, csr, now=now)  # the revoked key does not come back
    enrol(authority, fresh, make_request("hospital-a")[1], now=now)


def test_one_key_is_not_two_sites(authority: Authority, now: datetime) -> None:
    key, csr = make_request("hospital-a")
    enrol(authority, invite(authority, "hospital-a", now=now), csr, now=now)
    with pytest.raises(RequestRefused, match="new key"):
        enrol(authority, invite(authority, "hospital-b", now=now), request_for("hospital-b", key), now=now)


def test_a_name_has_one_role(authority: Authority, now: datetime) -> None:
    invite(authority, "hospital-a", now=now)
    for name, role in (("hospital-a", "admin"), ("coordinator", "site")):
        with pytest.raises(NameRefused, match="already"):
            invite(authority, name, role=role, now=now)
    with pytest.raises(NameRefused):
        invite(authority, "x", role="coordinator", now=now)
    with pytest.raises(NameRefused):
        invite(authority, "../x", now=now)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    guess=st.one_of(
        st.text(max_size=200), st.sampled_from([".", "0000000000000000.x", "\ud800.\ud800", "'; DROP TABLE token; --.x"])
    )
)
def test_guesses_are_refused(authority: Authority, now: datetime, guess: str) -> None:
    with pytest.raises(TokenRefused, match="no such token"):
        enrol(authority, guess, CSR, now=now)


CSR = make_request("hospital-a")[1]


def test_the_right_id_with_another_secret_is_refused_and_costs_nothing(authority: Authority, now: datetime) -> None:
    token = invite(authority, "hospital-a", now=now)
    id, _, secret = token.partition(".")
    for wrong in (f"{id}.", f"{id}.{secret[:-1]}", f"{id}.{secret}x", f"{id}.{secret.swapcase()}", secret, id):
        with pytest.raises(TokenRefused, match="no such token"):
            enrol(authority, wrong, CSR, now=now)
    enrol(authority, f" {token}\n", CSR, now=now)  # as it is copied from a mail


def test_no_token_of_another_authority_counts(authority: Authority, other: Authority, now: datetime) -> None:
    with pytest.raises(TokenRefused):
        enrol(authority, invite(other, "hospital-a", now=now), CSR, now=now)


def test_a_token_is_kept_as_a_hash_only(authority: Authority, now: datetime) -> None:
    token = invite(authority, "hospital-a", now=now)
    enrol(authority, token, CSR, now=now)
    secret = token.partition(".")[2].encode()
    for file in authority.folder.iterdir():
        assert secret not in file.read_bytes(), file


def test_a_death_before_the_certificate_is_noted_leaves_the_token_good(
    authority: Authority, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = invite(authority, "hospital-a", now=now)
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(enrolment.grant.__globals__["Book"], "add", killed)
        with pytest.raises(KeyboardInterrupt):
            enrol(authority, token, CSR, now=now)
    assert issued(authority, "hospital-a") == []
    enrol(authority, token, CSR, now=now)


def test_a_certificate_does_not_outlive_its_authority(authority: Authority, now: datetime) -> None:
    made = enrol(authority, invite(authority, "a", now=now), make_request("a")[1], life=timedelta(days=36500), now=now)
    assert made.not_valid_after_utc == authority.ca.not_valid_after_utc


def test_the_authority_makes_no_key_for_a_site(authority: Authority, now: datetime) -> None:
    made = enrol(authority, invite(authority, "hospital-a", now=now), CSR, now=now)
    assert isinstance(made.public_key(), ec.EllipticCurvePublicKey)
    held = [file.name for file in authority.folder.iterdir() if b"PRIVATE KEY" in file.read_bytes()]
    assert sorted(held) == ["ca.key", "coordinator.pem"]
