"""The keys that blobs are sealed with: several may be read, the last one given is the one to write with.

A key is 32 random bytes in hexadecimal, one a line of a file that only its owner may read, or in the environment.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path

from atoll.errors import ConfigError, StoreError
from atoll.store import files

KEY, KEY_FILE = "ATOLL_STORE_KEY", "ATOLL_STORE_KEY_FILE"
ID_BYTES = 8


class WrongKey(StoreError):
    """A blob is sealed with a key that was not given."""


class Keys:
    """Keys by their ids. Their text does not show them.

    >>> keys = Keys.parse("00" * 32 + " " + "11" * 32)
    >>> keys
    Keys(a50485bd0085c5b1, 94234713d7c1c1fb)
    >>> keys.newest[1] == bytes([0x11]) * 32
    True
    """

    def __init__(self, *secrets: bytes) -> None:
        """Raises ConfigError where there is none, or one is not of 32 bytes."""
        if not secrets or any(len(secret) != 32 for secret in secrets):
            raise ConfigError("a store's key has 32 bytes, 64 hexadecimal digits; make one with `openssl rand -hex 32`")
        self._secrets = {_id(secret): secret for secret in secrets}
        self.newest = (_id(secrets[-1]), secrets[-1])

    @classmethod
    def parse(cls, text: str, source: str = "the text") -> Keys:
        """The keys of a text: one a line, or with spaces or commas between; `#` begins a comment.

        Raises ConfigError with `source`, and without the key.
        """
        words = re.split(r"[\s,]+", re.sub(r"#.*", "", text).strip())
        if not all(re.fullmatch("[0-9a-fA-F]{64}", word) for word in words):
            raise ConfigError(
                f"{source} is no key: each has 64 hexadecimal digits, one a line, the newest last; "
                "make one with `openssl rand -hex 32`"
            )
        return cls(*map(bytes.fromhex, words))

    @classmethod
    def read(cls, path: Path | str) -> Keys:
        """The keys of a file. Raises StoreError where it can't be read, ConfigError where others may read it too."""
        file = Path(path)
        try:
            with open(file, encoding="ascii", errors="replace") as opened:
                mode = os.fstat(opened.fileno()).st_mode
                text = opened.read(1 << 20)
        except OSError as error:
            raise files.trouble(error, file) from error
        if mode & 0o077:
            raise ConfigError(f"the key in {file} may be read by others (mode {mode & 0o777:o}); chmod 600 {file}")
        return cls.parse(text, str(file))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Keys | None:
        """The keys of ATOLL_STORE_KEY, or of the file ATOLL_STORE_KEY_FILE; None where neither is set.

        Raises ConfigError where both are, or where one is empty: what should be sealed is not kept in the open.
        """
        if KEY in environment and KEY_FILE in environment:
            raise ConfigError(f"{KEY} and {KEY_FILE} are both set; unset one")
        if KEY_FILE in environment:
            if not environment[KEY_FILE]:
                raise ConfigError(f"{KEY_FILE} is empty; name the file, or unset it")
            return cls.read(environment[KEY_FILE])
        return cls.parse(environment[KEY], KEY) if KEY in environment else None

    def of(self, id: bytes, what: str) -> bytes:
        """The key of that id. Raises WrongKey with `what` it opens, which key that needs, and which there are."""
        try:
            return self._secrets[id]
        except KeyError:
            there = ", ".join(each.hex() for each in self._secrets)
            raise WrongKey(
                f"{what} is sealed with the key {id.hex()}, and the keys given are {there}; give it too, before the newest"
            ) from None

    def __repr__(self) -> str:
        return f"Keys({', '.join(each.hex() for each in self._secrets)})"


def _id(secret: bytes) -> bytes:
    return hmac.digest(secret, b"atoll store key id", hashlib.sha256)[:ID_BYTES]
