"""Detached Ed25519 signatures (RFC 8032) over what a job says (`judge.text_of`) and the code that comes with it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.errors import ConfigError
from atoll.store import files

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def statement(text: str, bundle: bytes = b"") -> bytes:
    """What is signed: one line that names its purpose, and the SHA-256 of the text and of the code.

    >>> statement("atoll = 1").count(b"\\n")
    3
    """
    parts = (hashlib.sha256(text.encode()).hexdigest(), hashlib.sha256(bundle).hexdigest())
    return ("atoll job 1\n" + "\n".join(parts) + "\n").encode()


def sign_job(key: Ed25519PrivateKey, text: str, bundle: bytes = b"") -> bytes:
    """The signature, 64 bytes.

    >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    >>> key = Ed25519PrivateKey.generate()
    >>> signed_by([public_text(key)], "atoll = 1", b"", sign_job(key, "atoll = 1")) == public_text(key)
    True
    """
    return key.sign(statement(text, bundle))


def signed_by(keys: Iterable[str], text: str, bundle: bytes, signature: bytes) -> str | None:
    """The key among `keys` (base64) that signed exactly this, or None."""
    return next((key for key in keys if verified(key, statement(text, bundle), signature)), None)


def keep_signature(key: Ed25519PrivateKey, job: Path, text: str) -> Path:
    """Sign what the job file says and put the signature beside it, as `job.toml.sig`; where that is. Raises StoreError."""
    said = json.dumps({"key": public_text(key), "signature": sign_job(key, text).hex()}).encode() + b"\n"
    path = job.with_name(job.name + ".sig")
    with files.replacing(path, len(said)) as file:
        file.write(said)
    return path


def kept_signature(job: Path, text: str) -> bytes:
    """The signature beside a job file; b"" where there is none.

    Raises:
        ConfigError: it can't be read, is no signature, or is of another text: the job was changed after it was signed.
    """
    path = job.with_name(job.name + ".sig")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        key, signature = str(said["key"]), bytes.fromhex(said["signature"])
        refuse_key(key)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"can't read the signature {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no signature; sign the job again with `atoll job sign`, or remove it") from None
    if not verified(key, statement(text), signature):
        raise ConfigError(f"{job} was changed after it was signed; sign it again with `atoll job sign`, or remove {path}")
    return signature


def verified(key: str, said: bytes, signature: bytes) -> bool:
    """The signature is the key's (base64, 32 bytes), over these bytes."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(signature, said)
    except (InvalidSignature, ValueError):
        return False
    return True


def refuse_key(key: str) -> None:
    """Raise ConfigError unless the text is an Ed25519 public key, 32 bytes in base64.

    >>> refuse_key("a2V5")
    Traceback (most recent call last):
    atoll.errors.ConfigError: 'a2V5': must be an Ed25519 public key, its 32 bytes in base64
    """
    try:
        size = len(base64.b64decode(key, validate=True))
    except binascii.Error:
        size = 0
    if size != 32:
        raise ConfigError(f"{key!r}: must be an Ed25519 public key, its 32 bytes in base64")


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half as a policy spells it: 32 bytes in base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def load_key(path: str | Path) -> Ed25519PrivateKey:
    """A private key in PEM without a password, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        ConfigError: it can't be read, or is none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(Path(path).read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"can't read the key {path}: {error.strerror or error}.") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is no Ed25519 private key in PEM; make one with `openssl genpkey -algorithm ed25519`.")
    return key


def make_key(path: str | Path) -> str:
    """Write a new private key in PEM, for its owner's eyes only; returns the public half.

    Raises:
        ConfigError: the file is there already, or can't be written.
    """
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    written = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"can't write the key {path}: {error.strerror or error}.") from None
    return public_text(key)
