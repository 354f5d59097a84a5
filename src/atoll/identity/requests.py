"""A certificate signing request (RFC 2986): made at the site, where the key stays, and checked by the authority.

It says a name and a public key and proves that who sends it has the private half. It asks for nothing else: what a
certificate allows is decided by the token or by the old certificate, never by the request.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from atoll.errors import RequestRefused
from atoll.identity.names import checked_name

LARGEST_BYTES = 8192  # ours has 400
_HASHES = ("sha256", "sha384", "sha512")


class Request(NamedTuple):
    """What a request that holds says."""

    name: str
    public_key: ec.EllipticCurvePublicKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key on the curve P-256 (FIPS 186-5), which every TLS library takes; gRPC's does not take Ed25519."""
    return ec.generate_private_key(ec.SECP256R1())


def make_request(name: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """(the key, the request as PEM): the request is sent, the key is not. Raises NameRefused.

    >>> key, request = make_request("hospital-a")
    >>> checked_request(request).name
    'hospital-a'
    """
    key = new_key()
    return key, request_for(name, key)


def request_for(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The request of this name and key, as PEM. Raises NameRefused."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, checked_name(name))])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def checked_request(pem: bytes) -> Request:
    """The name and the key of a request from a network.

    Raises RequestRefused for what is no request, has another kind of key than P-256, is not signed by that key, or asks for
    anything beyond a name; NameRefused for the name.
    """
    if len(pem) > LARGEST_BYTES:
        raise RequestRefused(f"the request has {len(pem)} bytes, and may have {LARGEST_BYTES}")
    try:
        request = x509.load_pem_x509_csr(pem)
        key, signed = request.public_key(), request.is_signature_valid
        algorithm = request.signature_hash_algorithm
        extras = [each.oid.dotted_string for each in request.attributes]  # of which a wish for extensions is one
        names = [(each.oid, each.value) for each in request.subject]
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise RequestRefused(f"this is no request for a certificate: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        kind = f"{key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__.lstrip("_")
        raise RequestRefused(f"the request's key is of the kind {kind}; make one on the curve P-256")
    if not signed or algorithm is None or algorithm.name not in _HASHES:
        raise RequestRefused("the request is not signed by the key that it carries, with SHA-256 or better; make a new one")
    if extras:
        raise RequestRefused(f"the request asks for more than a name ({', '.join(extras)}); what it may is said by its token")
    if len(names) != 1 or names[0][0] != NameOID.COMMON_NAME or not isinstance(names[0][1], str):
        raise RequestRefused("the request's subject must be one common name, the site's, and nothing else")
    return Request(checked_name(names[0][1]), key)


def key_sha256(key: ec.EllipticCurvePublicKey) -> bytes:
    """The SHA-256 of a public key as DER (SubjectPublicKeyInfo), 32 bytes."""
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).digest()


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as PKCS #8 PEM, for a file that only its owner can read."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
