"""The authority's half of enrolment and renewal, without a network: a request comes in, a certificate goes out.

Both may be asked again with the same key, because an answer may be lost on its way: then the same certificate is the answer.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509

from atoll.errors import CertificateRevoked, RequestRefused, TokenRefused
from atoll.identity.authority import LIFE, Authority, grant
from atoll.identity.peers import clock, identify, nobody
from atoll.identity.requests import checked_request, key_sha256
from atoll.identity.tokens import invitation


def enrol(
    authority: Authority, token: str, csr: bytes, *, life: timedelta = LIFE, now: datetime | None = None
) -> x509.Certificate:
    """The certificate that a token buys: of the token's name and role, and of the request's key.

    Raises TokenRefused, RequestRefused (the token stays good then), NameRefused, CertificateRevoked.
    """
    moment, request = now or clock(), checked_request(csr)
    with authority.ledger.transaction() as book:
        invited = invitation(book, token, moment)
        if request.name != invited.name:
            raise RequestRefused(f"the token is for {invited.name}, and the request for {request.name}")
        cause = f"token {invited.id}"
        if invited.used is not None:
            before = book.with_key(key_sha256(request.public_key))
            if before is None or before.cause != cause:
                raise TokenRefused(
                    f"the token for {invited.name} was used at {invited.used:%Y-%m-%d %H:%M} UTC; ask for a new one, and, if "
                    f"nobody of {invited.name} used it, for `atoll pki revoke {invited.name}`"
                )
        certificate = grant(authority, book, invited.name, invited.role, request.public_key, cause, life, moment)
        if invited.used is None:
            book.use(invited.id, moment)
    return certificate


def renew(
    authority: Authority, certificate: bytes, csr: bytes, *, life: timedelta = LIFE, now: datetime | None = None
) -> x509.Certificate:
    """A new certificate for who has this one, which stays good until it expires. The caller has seen its key proved, as a TLS
    handshake does: what the peer of the connection showed is given here, never what a message says.

    Raises ForeignCertificate, CertificateExpired, CertificateRevoked, CertificateNotYetValid, WrongRole, RequestRefused.
    """
    moment, request = now or clock(), checked_request(csr)
    who = identify(certificate, authority.trust()._replace(revoked=nobody), now=moment)
    if request.name != who.name:
        raise RequestRefused(f"the certificate is of {who.name}, and the request for {request.name}: nobody renews another's")
    with authority.ledger.transaction() as book:
        known = book.with_serial(
            who.serial
        )  # the ledger and not the list, in this transaction: a revocation comes before or after
        if known is None or known.revoked is not None:
            raise CertificateRevoked(f"the certificate {who.serial} of {who.name} was revoked; ask for a new token")
        return grant(authority, book, who.name, who.role, request.public_key, f"renewal of {who.serial}", life, moment)
