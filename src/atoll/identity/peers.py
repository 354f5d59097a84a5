"""From the certificate that a peer showed to who the peer is.

TLS has checked by then that the peer has the private key. What it checked of the rest depends on the library, so all of it
is checked here, in the order: the authority's signature (RFC 5280, 6.1), the time, the list of the revoked, the name, the role.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from atoll.errors import (
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    ForeignCertificate,
    WrongRole,
)
from atoll.identity.names import COORDINATOR, INVITED, Role, read_uri

E = TypeVar("E", bound=x509.ExtensionType)


class Identity(NamedTuple):
    """Who a peer is; the serial is the certificate's, as hexadecimal digits."""

    name: str
    role: Role
    serial: str
    expires: datetime


class Trust(NamedTuple):
    """Whose certificates count, for what domain, and which of them no longer do: `revoked` is asked each time."""

    ca: x509.Certificate
    domain: str
    revoked: Callable[[], Collection[str]]


def clock() -> datetime:
    """The time, with its zone. The functions here take `now` instead, where it is given."""
    return datetime.now(UTC)


def nobody() -> Collection[str]:
    """The list of the revoked of one who keeps none, such as a site, which checks no more than its coordinator."""
    return ()


def trust(ca_pem: bytes, *, sha256: str | None = None, revoked: Callable[[], Collection[str]] = nobody) -> Trust:
    """To trust what this authority signs, if its certificate has the fingerprint that was given out of band.

    Raises ForeignCertificate where it has not, or where this is no authority's certificate.
    """
    ca = _parsed(ca_pem)
    if sha256 is not None and not hmac.compare_digest(fingerprint(ca).encode(), _digits(sha256).encode()):
        raise ForeignCertificate(
            f"the authority's certificate has the SHA-256 {fingerprint(ca)}, and {sha256} was expected: somebody may be in "
            "between; go no further, and ask whoever sent you the token"
        )
    constraints = _extension(ca, x509.BasicConstraints)
    domains = [uri.removeprefix("spiffe://") for uri in _uris(ca) if uri.startswith("spiffe://")]
    if constraints is None or not constraints.ca or len(domains) != 1 or "/" in domains[0] or not _signed(ca, ca):
        raise ForeignCertificate("this is not the certificate of an authority that `atoll pki init` made")
    return Trust(ca, domains[0], revoked)


def identify(certificate: bytes, trusted: Trust, *, roles: Collection[Role] = INVITED, now: datetime | None = None) -> Identity:
    """Who shows this certificate (PEM or DER). For `roles`: a coordinator expects INVITED or fewer, a site `("coordinator",)`.

    Raises ForeignCertificate, CertificateNotYetValid, CertificateExpired, CertificateRevoked, WrongRole.
    """
    shown, moment = _parsed(certificate), now or clock()
    if not _signed(shown, trusted.ca):
        raise ForeignCertificate(f"the certificate is not of the authority of {trusted.domain}; enrol there with a token")
    for each in (trusted.ca, shown):
        _in_time(each, moment)
    serial = serial_text(shown)
    if serial in trusted.revoked():
        raise CertificateRevoked(f"the certificate {serial} was revoked; ask for a new token")
    uris = _uris(shown)
    found = read_uri(uris[0], trusted.domain) if len(uris) == 1 else None
    if found is None:
        raise ForeignCertificate(f"the certificate names nobody of {trusted.domain}: it has {uris or 'no URI'}")
    role, name = found
    usage = _extension(shown, x509.ExtendedKeyUsage)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if role == COORDINATOR else ExtendedKeyUsageOID.CLIENT_AUTH
    if usage is None or list(usage) != [purpose]:
        raise ForeignCertificate(f"the certificate of {name} is not made for a {role} to connect with")
    who = Identity(name, role, serial, shown.not_valid_after_utc)
    if role not in roles:
        raise WrongRole(f"{name} is a {role}, and this takes one of: {', '.join(roles)}")
    return who


def still_good(who: Identity, trusted: Trust, *, now: datetime | None = None) -> None:
    """The same for the next message of a stream: what may have changed since the handshake. It costs microseconds.

    Raises CertificateExpired, CertificateRevoked.
    """
    if (now or clock()) > who.expires:
        raise CertificateExpired(f"the certificate of {who.name} expired at {who.expires:%Y-%m-%d %H:%M} UTC; renew it")
    if who.serial in trusted.revoked():
        raise CertificateRevoked(f"the certificate {who.serial} of {who.name} was revoked; ask for a new token")


def authority_among(chain: Collection[bytes], sha256: str) -> bytes:
    """The authority's certificate, as PEM, out of the chain (each DER or PEM) that a server not trusted yet showed: the one
    with the fingerprint that came out of band. It is public, so nothing is lost by having looked.

    Raises ForeignCertificate where none has it.
    """
    wanted = _digits(sha256)
    for each in chain:
        shown = _parsed(each)
        if hmac.compare_digest(fingerprint(shown).encode(), wanted.encode()):
            return shown.public_bytes(serialization.Encoding.PEM)
    raise ForeignCertificate(
        f"the server shows no authority with the SHA-256 {sha256}: this is another server, or somebody is in between; go no "
        "further, and ask whoever sent you the token"
    )


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate as DER, in 64 hexadecimal digits."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def serial_text(certificate: x509.Certificate) -> str:
    """A certificate's serial number in hexadecimal digits."""
    return f"{certificate.serial_number:x}"


def _digits(sha256: str) -> str:
    return sha256.strip().replace(":", "").lower()


def _parsed(certificate: bytes) -> x509.Certificate:
    """The certificate, its extensions read once so that what is malformed is found here."""
    try:
        pem = certificate.lstrip().startswith(b"-----")
        parsed = x509.load_pem_x509_certificate(certificate) if pem else x509.load_der_x509_certificate(certificate)
        _ = parsed.extensions
        return parsed
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ForeignCertificate(f"this is no certificate: {str(error).partition(chr(10))[0]}") from error


def _signed(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _in_time(certificate: x509.Certificate, moment: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if moment < first:
        raise CertificateNotYetValid(
            f"the certificate {serial_text(certificate)} is valid from {first:%Y-%m-%d %H:%M} UTC, and here it is "
            f"{moment:%Y-%m-%d %H:%M}: set the clock of this machine or of the authority's"
        )
    if moment > last:
        raise CertificateExpired(
            f"the certificate {serial_text(certificate)} expired at {last:%Y-%m-%d %H:%M} UTC; enrol again with a new token"
        )


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _uris(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
