"""Files of an identity: written whole or not at all, and private keys that nobody else can read."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from atoll.errors import IdentityError

_LARGEST_BYTES = 1 << 20  # a key or a certificate has hundreds; a list of ten thousand revoked ones fits


def write(path: Path, content: bytes, *, private: bool) -> None:
    """Put the content in the place of the file, durably; `private` means that only its owner may read it.

    Raises IdentityError where that can't be.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise IdentityError(f"{path} can't be written: {error.strerror or error}; give a folder that may be written") from error


def read(path: Path) -> bytes:
    """The content of a file that anybody may read. Raises IdentityError."""
    return _read(path, private=False)


def read_private(path: Path) -> bytes:
    """The content of a file with a private key.

    Raises IdentityError where another user could read it as well, or write it: what others may have is no secret.
    """
    return _read(path, private=True)


def _read(path: Path, private: bool) -> bytes:
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())  # of what is open, so that nothing can be put in its place after the look
            mode = stat.S_IMODE(state.st_mode)
            if private and state.st_uid not in (os.geteuid(), 0):
                raise IdentityError(f"{path} holds a private key and belongs to another user; it must belong to you")
            if private and mode & 0o077:
                raise IdentityError(
                    f"{path} holds a private key and others may use it (mode {mode:04o}); run `chmod 600 {path}`, and have a new "
                    "certificate made if somebody else was on this machine"
                )
            content = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise IdentityError(f"{path} can't be read: {error.strerror or error}") from error
    if len(content) > _LARGEST_BYTES:
        raise IdentityError(f"{path} has more than {_LARGEST_BYTES} bytes: it is no key, certificate or list of revoked ones")
    return content


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
