from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import IdentityError, NameRefused, RequestRefused
from atoll.identity.requests import LARGEST_BYTES, checked_request, key_sha256, make_request, new_key

KEY, GOOD = make_request("hospital-a")


def builder(*names: str) -> x509.CertificateSigningRequestBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names or ("hospital-a",)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject)


def pem(request: x509.CertificateSigningRequest) -> bytes:
    return request.public_bytes(serialization.Encoding.PEM)


def test_a_request_says_a_name_and_a_public_key_and_nothing_private() -> None:
    request = checked_request(GOOD)
    assert request.name == "hospital-a"
    assert key_sha256(request.public_key) == key_sha256(KEY.public_key())
    secret = KEY.private_numbers().private_value.to_bytes(32, "big")
    assert secret not in x509.load_pem_x509_csr(GOOD).public_bytes(serialization.Encoding.DER)
    assert b"PRIVATE" not in GOOD


def test_two_requests_have_two_keys() -> None:
    assert key_sha256(make_request("a")[0].public_key()) != key_sha256(make_request("a")[0].public_key())


@pytest.mark.parametrize(
    "extension",
    [
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://trial.example/admin/hospital-a")]),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://trial.example/site/hospital-b")]),
        x509.SubjectAlternativeName([x509.DNSName("coordinator.example")]),
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    ],
    ids=["admin", "another site", "host", "authority", "server"],
)
def test_more_than_a_name_is_refused(extension: x509.ExtensionType) -> None:
    with pytest.raises(RequestRefused, match="more than a name"):
        checked_request(pem(builder().add_extension(extension, critical=False).sign(KEY, hashes.SHA256())))


def test_an_attribute_is_refused() -> None:
    asked = builder().add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"secret").sign(KEY, hashes.SHA256())
    with pytest.raises(RequestRefused, match="more than a name"):
        checked_request(pem(asked))


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256K1())],
    ids=["RSA", "P-384", "secp256k1"],
)
def test_other_keys_are_refused(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(RequestRefused, match="P-256"):
        checked_request(pem(builder().sign(key, hashes.SHA256())))


def test_ed25519_is_refused_since_grpc_does_not_take_it() -> None:
    with pytest.raises(RequestRefused, match="P-256"):
        checked_request(pem(builder().sign(ed25519.Ed25519PrivateKey.generate(), None)))


def test_a_weak_signature_is_refused() -> None:
    with pytest.raises(RequestRefused, match="SHA-256"):
        checked_request(pem(builder().sign(KEY, hashes.SHA224())))


def test_somebody_elses_key_is_refused() -> None:
    """A request of which the key was replaced: who sends it has not got the private half."""
    der = x509.load_pem_x509_csr(GOOD).public_bytes(serialization.Encoding.DER)
    form = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    mine, theirs = KEY.public_key().public_bytes(*form), new_key().public_key().public_bytes(*form)
    assert der.count(mine) == 1
    with pytest.raises(RequestRefused, match="not signed"):
        checked_request(as_pem(der.replace(mine, theirs)))


def test_two_names_are_refused() -> None:
    with pytest.raises(RequestRefused, match="one common name"):
        checked_request(pem(builder("hospital-a", "admin").sign(KEY, hashes.SHA256())))
    with pytest.raises(RequestRefused, match="one common name"):
        checked_request(pem(x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(KEY, hashes.SHA256())))


@pytest.mark.parametrize("name", ["../admin", "hospital a", "HOSPITAL", "a/b", "a\x00"])
def test_tricks_in_the_name_are_refused(name: str) -> None:
    with pytest.raises(NameRefused):
        make_request(name)
    with pytest.raises(NameRefused):
        checked_request(pem(builder(name).sign(KEY, hashes.SHA256())))


def test_a_request_may_not_be_long() -> None:
    with pytest.raises(RequestRefused, match="bytes"):
        checked_request(GOOD + b"\n" * LARGEST_BYTES)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda body: as_pem(body))))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(RequestRefused):
        checked_request(noise)


@given(st.data())
def test_a_changed_request_is_refused(data: st.DataObject) -> None:
    der = bytearray(x509.load_pem_x509_csr(GOOD).public_bytes(serialization.Encoding.DER))
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IdentityError):
        checked_request(as_pem(bytes(der)))


def as_pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"
