"""What crosses the network when somebody asks for a certificate: JSON there, the certificate as PEM back.

Who has a token sends it with the request. Who has a certificate sends that, and signs the new request with its key, which
proves who asks whatever the connection is; sent again by somebody else, it gives the same certificate, of a key they have not.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from atoll.errors import RequestRefused
from atoll.identity.authority import Authority, pem, read_key
from atoll.identity.credentials import Credentials
from atoll.identity.enrolment import enrol, renew

LARGEST_BYTES = 16384
_SIGNED = b"atoll renewal/1\n"  # so that this signature is no other one's
_ECDSA = ec.ECDSA(hashes.SHA256())


def with_token(token: str, csr: bytes) -> bytes:
    """The question of who has a token."""
    return json.dumps({"token": token, "csr": csr.decode()}).encode()


def with_certificate(own: Credentials, csr: bytes) -> bytes:
    """The question of who has a certificate that is still good."""
    proof = read_key(own.key_pem, "the identity").sign(_SIGNED + csr, _ECDSA)
    shown = {"certificate": own.certificate_pem.decode(), "proof": base64.b64encode(proof).decode(), "csr": csr.decode()}
    return json.dumps(shown).encode()


def answer(authority: Authority, question: bytes, *, now: datetime | None = None) -> bytes:
    """The certificate, as PEM. Raises RequestRefused for what is no question, and the errors of `enrol` and `renew`."""
    if len(question) > LARGEST_BYTES:
        raise RequestRefused(f"the question has {len(question)} bytes, and may have {LARGEST_BYTES}")
    try:
        said = json.loads(question)
    except (ValueError, RecursionError) as error:
        raise RequestRefused("the question is no JSON; ask with `atoll pki enrol`") from error
    if not isinstance(said, dict) or not all(isinstance(each, str) for each in said.values()):
        raise RequestRefused("the question is no table of texts; ask with `atoll pki enrol`")
    csr = said.get("csr", "").encode(errors="replace")
    if said.keys() == {"token", "csr"}:
        return pem(enrol(authority, said["token"], csr, now=now))
    if said.keys() == {"certificate", "proof", "csr"}:
        old = said["certificate"].encode(errors="replace")
        _check_proof(old, said["proof"], csr)
        return pem(renew(authority, old, csr, now=now))
    raise RequestRefused("the question has neither a token nor a certificate; ask with `atoll pki enrol`")


def _check_proof(certificate: bytes, proof: str, csr: bytes) -> None:
    """Raise RequestRefused unless who has the certificate's key signed the request."""
    try:
        key = x509.load_pem_x509_certificate(certificate).public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(base64.b64decode(proof, validate=True), _SIGNED + csr, _ECDSA)
            return
    except (ValueError, binascii.Error, InvalidSignature):
        pass
    raise RequestRefused("the renewal is not signed with the key of the certificate that it shows")
