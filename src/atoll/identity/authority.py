"""The authority of a federation: a key that signs who is who, and the folder that it lies in.

ca.pem            the authority's certificate: public, and known to every site by its SHA-256
ca.key            its private key (0600): whoever has it can be anybody
coordinator.pem   the coordinator's key and certificate in one file (0600), so that both change at once
revoked.pem       the signed list of what was taken back
ledger.sqlite     the tokens, by hash, and every certificate (0600)
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atoll.errors import CertificateRevoked, IdentityError, NameRefused, RequestRefused
from atoll.identity import files, peers
from atoll.identity.ledger import Book, Issued, Ledger
from atoll.identity.names import COORDINATOR, Role, checked_host, checked_name, uri
from atoll.identity.requests import key_sha256, new_key, private_pem
from atoll.identity.revocation import LIST, RevokedFile, signed_list

CA_LIFE = timedelta(days=3650)
COORDINATOR_LIFE = timedelta(days=365)
LIFE = timedelta(days=90)  # of everybody else's, who renew by themselves; a revocation does not wait for it
SKEW = timedelta(minutes=5)  # by which a site's clock may be slow


@dataclass(frozen=True)
class Authority:
    """An opened folder."""

    folder: Path
    ca: x509.Certificate
    domain: str
    ledger: Ledger
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def sha256(self) -> str:
        """The fingerprint that sites are given out of band."""
        return peers.fingerprint(self.ca)

    @property
    def ca_pem(self) -> bytes:
        """The authority's certificate."""
        return pem(self.ca)

    def trust(self) -> peers.Trust:
        """What the coordinator checks its peers by; it follows the list of the revoked."""
        return peers.Trust(self.ca, self.domain, RevokedFile(self.folder / LIST, self.ca))


def create(folder: Path, domain: str, hosts: Sequence[str], *, now: datetime | None = None) -> Authority:
    """Make an authority in a new folder, and the certificate of a coordinator that is reached by these DNS names or addresses.

    Raises NameRefused for a domain or host, IdentityError where the folder holds anything already.
    """
    moment = now or peers.clock()
    checked_name(domain, "domain")
    if not hosts:
        raise NameRefused("a coordinator needs at least one --host: the DNS name or address that sites connect to")
    wanted = [checked_host(host) for host in hosts]
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".pki-", dir=folder.parent))  # 0700; renamed when it is whole
    except OSError as error:
        raise IdentityError(f"{folder} can't be made: {error.strerror or error}") from error
    try:
        key = new_key()
        ca = _self_signed(domain, key, moment)
        made = Authority(making, ca, domain, Ledger.make(making / "ledger.sqlite"), key)
        files.write(making / "ca.key", private_pem(key), private=True)
        files.write(making / LIST, signed_list(ca, key, [], moment), private=False)
        _make_coordinator(made, wanted, moment)
        files.write(making / "ca.pem", made.ca_pem, private=False)
        os.rename(making, folder)  # fails on a folder with anything in it
    except OSError as error:
        raise IdentityError(f"{folder} can't become an authority's folder: {error.strerror or error}; name a new one") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return load(folder)


def load(folder: Path) -> Authority:
    """The authority of a folder. Raises IdentityError where there is none, or where others may read its key."""
    if not (folder / "ca.key").exists():
        raise IdentityError(f"{folder} holds no authority; make one with `atoll pki init {folder}`, or name its folder")
    trusted = peers.trust(files.read(folder / "ca.pem"))
    key = read_key(files.read_private(folder / "ca.key"), folder / "ca.key")
    if key.public_key() != trusted.ca.public_key():
        raise IdentityError(f"ca.key and ca.pem in {folder} do not belong together; restore both from one backup")
    return Authority(folder, trusted.ca, trusted.domain, Ledger(folder / "ledger.sqlite"), key)


def grant(
    authority: Authority,
    book: Book,
    name: str,
    role: Role,
    key: ec.EllipticCurvePublicKey,
    cause: str,
    life: timedelta,
    now: datetime,
    hosts: Sequence[str | IPv4Address | IPv6Address] = (),
) -> x509.Certificate:
    """The certificate of a key, signed now or, when the same cause asks again with the same key, the one that it has.

    So an answer that was lost on its way can be asked for again. Raises RequestRefused where the key has a certificate for
    another reason: one key is one certificate's.
    """
    before = book.with_key(key_sha256(key))
    if before is None:
        certificate = _signed(authority, name, role, key, life, now, hosts)
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        serial = peers.serial_text(certificate)
        book.add(Issued(serial, name, role, first, last, cause, key_sha256(key), pem(certificate)))
        return certificate
    if (before.name, before.role, before.cause) != (name, role, cause):
        raise RequestRefused("the request's key has a certificate already; make a new key for each request")
    if before.revoked is not None:
        raise CertificateRevoked(f"the certificate {before.serial} of {name} was revoked; ask for a new token")
    return x509.load_pem_x509_certificate(before.pem)


def renew_coordinator(authority: Authority, hosts: Sequence[str] = (), *, now: datetime | None = None) -> x509.Certificate:
    """A new key and certificate for the coordinator, of the same hosts when none are named. The old one stays good until it
    expires, so a coordinator that runs is not disturbed. Raises NameRefused.
    """
    names = _hosts_of(coordinator_certificate(authority)) if not hosts else [checked_host(host) for host in hosts]
    return _make_coordinator(authority, names, now or peers.clock())


def coordinator_certificate(authority: Authority) -> x509.Certificate:
    """The newest of the coordinator's certificates."""
    return x509.load_pem_x509_certificate(files.read_private(authority.folder / "coordinator.pem"))


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def read_key(content: bytes, path: Path | str) -> ec.EllipticCurvePrivateKey:
    """The private key in a file's content. Raises IdentityError, which never shows the content."""
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{path} holds no private key of Atoll's; restore it from a backup")
    return key


def _make_coordinator(authority: Authority, hosts: Sequence[str | IPv4Address | IPv6Address], now: datetime) -> x509.Certificate:
    key = new_key()
    life = COORDINATOR_LIFE
    with authority.ledger.transaction() as book:
        made = grant(authority, book, COORDINATOR, COORDINATOR, key.public_key(), "init or renew", life, now, hosts)
        files.write(authority.folder / "coordinator.pem", private_pem(key) + pem(made), private=True)
    return made


def _self_signed(domain: str, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain)])
    usage = x509.KeyUsage(**(_NO_USAGE | {"key_cert_sign": True, "crl_sign": True}))
    return (
        _builder(title, title, key.public_key(), key.public_key(), now, now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{domain}")]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _signed(
    authority: Authority,
    name: str,
    role: Role,
    key: ec.EllipticCurvePublicKey,
    life: timedelta,
    now: datetime,
    hosts: Sequence[str | IPv4Address | IPv6Address],
) -> x509.Certificate:
    """Only a coordinator has hosts and may be a server: a site's certificate can't be put up as the coordinator's."""
    others: list[x509.GeneralName] = [x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host) for host in hosts]
    names = [x509.UniformResourceIdentifier(uri(authority.domain, role, checked_name(name))), *others]
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if role == COORDINATOR else ExtendedKeyUsageOID.CLIENT_AUTH
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    last = min(now + life, authority.ca.not_valid_after_utc)
    return (
        _builder(subject, authority.ca.subject, key, authority.key.public_key(), now, last)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**(_NO_USAGE | {"digital_signature": True})), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


_NO_USAGE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime,
    last: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(secrets.randbits(63) | 1 << 63)  # 16 digits, for people; the ledger sees to it that none comes twice
        .not_valid_before(now - SKEW)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _hosts_of(certificate: x509.Certificate) -> list[str | IPv4Address | IPv6Address]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [each for each in names.get_values_for_type(x509.IPAddress) if isinstance(each, IPv4Address | IPv6Address)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]
