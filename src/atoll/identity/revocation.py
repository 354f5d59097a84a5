"""Certificates that are taken back before their time: a list signed by the authority (a CRL, RFC 5280, section 5).

The file is replaced whole at each change; who checks by it looks whether it changed, at every handshake and every message.
It is read where it is written, on the coordinator's machine, so it does not expire before the authority does.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from atoll.errors import IdentityError
from atoll.identity import files
from atoll.identity.ledger import Issued
from atoll.identity.names import COORDINATOR
from atoll.identity.peers import clock

if TYPE_CHECKING:
    from atoll.identity.authority import Authority

LIST = "revoked.pem"


def revoke(authority: Authority, which: str, *, now: datetime | None = None) -> list[Issued]:
    """Take back every certificate of a name and its unused tokens, or the one certificate of a serial; which ones it was.

    Raises IdentityError where there is nothing to take back.
    """
    moment = now or clock()
    with authority.ledger.transaction() as book:
        every = book.certificates()
        chosen = [each for each in every if each.serial == which.lower()] or [each for each in every if each.name == which]
        if any(each.role == COORDINATOR for each in chosen):
            raise IdentityError(
                "the coordinator's certificate can't be revoked: sites keep no list. If its key was stolen, make a new authority "
                "with `atoll pki init` and enrol every site there"
            )
        withdrawn = book.withdraw(which, moment)
        if not chosen and not withdrawn:
            raise IdentityError(f"there is no certificate or unused token of {which!r}; `atoll pki list` shows them")
        fresh = [each for each in chosen if each.revoked is None]
        for each in fresh:
            book.revoke(each.serial, moment)
        # Before the commit: when we are killed between the two, a certificate is refused that the ledger still calls good,
        # and the command, repeated, finds it. The other way round it would be accepted though called revoked.
        files.write(authority.folder / LIST, signed_list(authority.ca, authority.key, book.certificates(), moment), private=False)
    return fresh


def signed_list(ca: x509.Certificate, key: ec.EllipticCurvePrivateKey, issued: list[Issued], now: datetime) -> bytes:
    """The revoked among the certificates, signed, as PEM."""
    gone = [(each.serial, each.revoked) for each in issued if each.revoked is not None]
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(max(ca.not_valid_before_utc, min(now, ca.not_valid_after_utc)))
        .next_update(ca.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(len(gone)), critical=False)  # it only grows: nothing is ever taken off
    )
    for serial, moment in gone:
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(moment)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_list(pem: bytes, ca: x509.Certificate) -> frozenset[str]:
    """The serials of a list that this authority signed. Raises IdentityError where it did not."""
    try:
        listed = x509.load_pem_x509_crl(pem)
        key = ca.public_key()
        good = listed.issuer == ca.subject and isinstance(key, ec.EllipticCurvePublicKey) and listed.is_signature_valid(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"this is no list of revoked certificates: {str(error).partition(chr(10))[0]}") from error
    if not good:
        raise IdentityError("the list of revoked certificates is not signed by this authority; restore it from the authority")
    return frozenset(f"{each.serial_number:x}" for each in listed)


class RevokedFile:
    """The list in a file, read again whenever the file has changed; one `stat` a call otherwise."""

    def __init__(self, path: Path, ca: x509.Certificate) -> None:
        self._path, self._ca = path, ca
        self._read: tuple[tuple[int, int, int], frozenset[str]] | None = None  # one value, so that threads may share it

    def __call__(self) -> frozenset[str]:
        """The serials. Raises IdentityError where the file is missing or not the authority's: then nobody is let in."""
        try:
            state = self._path.stat()
        except OSError as error:
            raise IdentityError(f"{self._path}, the list of revoked certificates, can't be read: {error.strerror}") from error
        mark = (state.st_ino, state.st_mtime_ns, state.st_size)
        known = self._read
        if known is None or known[0] != mark:
            known = self._read = (mark, read_list(files.read(self._path), self._ca))
        return known[1]
