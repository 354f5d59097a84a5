"""What a site, or anybody but the authority, keeps in its own folder: a key that never leaves it, and what was signed for it.

ca.pem         the authority, checked against its SHA-256 when it came
identity.pem   the key and the certificate in one file (0600), so that both change at once
next.key       the key of a request that is not answered yet (0600): after a crash the same request is made again
token          the id of the token that bought it, so that a token which is given again is not asked with again
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509.oid import NameOID

from atoll.errors import IdentityError
from atoll.identity import files, peers
from atoll.identity.authority import Authority, coordinator_certificate, pem, read_key, renew_coordinator
from atoll.identity.names import ROLES, checked_name
from atoll.identity.requests import make_request, private_pem, request_for


@dataclass(frozen=True)
class Credentials:
    """What TLS is given, as PEM. The key is not shown when this is printed."""

    who: peers.Identity
    certificate_pem: bytes
    ca_pem: bytes
    key_pem: bytes = field(repr=False)

    @property
    def chain_pem(self) -> bytes:
        """The certificate and the authority's: what a coordinator shows, so that a site at its first contact can look for the
        authority whose SHA-256 it was given.
        """
        return self.certificate_pem + self.ca_pem

    def trust(self) -> peers.Trust:
        """What a site checks its coordinator by."""
        return peers.trust(self.ca_pem)

    def due(self, now: datetime | None = None) -> bool:
        """Whether two thirds of the certificate's time are over: then it should be renewed."""
        certificate = x509.load_pem_x509_certificate(self.certificate_pem)
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return (now or peers.clock()) >= first + (last - first) * 2 / 3


def prepare(folder: Path, name: str) -> bytes:
    """The request to send, as PEM: of a new key, kept in the folder first, or of the one whose answer did not come yet.

    Raises NameRefused, IdentityError.
    """
    checked_name(name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise IdentityError(f"{folder} can't be made: {error.strerror or error}; name another folder") from error
    if (known := waiting(folder)) is not None:
        return request_for(name, known)
    key, request = make_request(name)
    files.write(folder / "next.key", private_pem(key), private=True)
    return request


def waiting(folder: Path) -> EllipticCurvePrivateKey | None:
    """The key of a request whose answer is not kept yet. Raises IdentityError."""
    path, current = folder / "next.key", folder / "identity.pem"
    if not path.exists():
        return None
    key = read_key(files.read_private(path), path)
    kept = current.exists() and read_key(files.read_private(current), current).public_key() == key.public_key()
    return None if kept else key


def holder(folder: Path) -> str | None:
    """Whose certificate lies in the folder, whether it is still good or not; None where there is none. Raises IdentityError."""
    path = folder / "identity.pem"
    if not path.exists():
        return None
    names = _certificate(files.read_private(path), path).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def accept(
    folder: Path, name: str, certificate_pem: bytes, ca_pem: bytes, *, sha256: str | None = None, now: datetime | None = None
) -> Credentials:
    """Keep what came for the request: checked to be of this name, this key and the authority with this SHA-256, which only a
    folder that knows its authority already may leave out.

    Raises ForeignCertificate and the other errors of `identify`; IdentityError.
    """
    pinned = folder / "ca.pem"
    if sha256 is None and not pinned.exists():
        raise IdentityError(f"{folder} knows no authority yet; give the SHA-256 that came with the token")
    trusted = peers.trust(ca_pem, sha256=sha256)
    if pinned.exists() and peers.trust(files.read(pinned)).ca != trusted.ca:
        raise IdentityError(
            f"{folder} belongs to another authority, of {peers.trust(files.read(pinned)).domain}; name a new folder"
        )
    asked = folder / "next.key"
    if not asked.exists():
        raise IdentityError(f"{folder} waits for no certificate; ask for one first")
    key = read_key(files.read_private(asked), asked)
    who = peers.identify(certificate_pem, trusted, now=now)
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    if who.name != name or certificate.public_key() != key.public_key():
        raise IdentityError(f"what came is the certificate of {who.name} and not what {name} asked for; ask again")
    files.write(pinned, pem(trusted.ca), private=False)
    files.write(folder / "identity.pem", private_pem(key) + pem(certificate), private=True)
    asked.unlink(missing_ok=True)
    return Credentials(who, pem(certificate), pem(trusted.ca), private_pem(key))


def load(folder: Path, *, now: datetime | None = None) -> Credentials:
    """What the folder holds. Raises IdentityError where it holds nothing, or others may read it; CertificateExpired."""
    if not (folder / "identity.pem").exists():
        raise IdentityError(f"{folder} holds no identity; enrol with a token first: `atoll join --token ...`")
    return _read(folder / "identity.pem", files.read(folder / "ca.pem"), now)


def of_coordinator(authority: Authority, *, now: datetime | None = None) -> Credentials:
    """The coordinator's own, renewed first when it is due. Raises IdentityError."""
    moment = now or peers.clock()
    path = authority.folder / "coordinator.pem"
    if coordinator_certificate(authority).not_valid_after_utc > moment:
        current = _read(path, authority.ca_pem, moment)
        if not current.due(moment):
            return current
    renew_coordinator(authority, now=moment)
    return _read(path, authority.ca_pem, moment)


def _read(path: Path, ca_pem: bytes, now: datetime | None) -> Credentials:
    content = files.read_private(path)
    key = read_key(content, path)
    certificate = _certificate(content, path)
    if certificate.public_key() != key.public_key():
        raise IdentityError(f"the key and the certificate in {path} do not belong together; enrol again")
    who = peers.identify(pem(certificate), peers.trust(ca_pem), roles=ROLES, now=now)
    return Credentials(who, pem(certificate), ca_pem, private_pem(key))


def _certificate(content: bytes, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise IdentityError(f"{path} holds no certificate; restore it, or enrol again") from error
