"""Who an end of a deployment is and whom it believes, from the folders that `atoll pki` and a site keep."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.errors import ConfigError, missing_extra
from atoll.remote.values import Credentials

if TYPE_CHECKING:
    from atoll.identity.credentials import Credentials as Identity

Who = Callable[[bytes], str]  # certificate in PEM -> site


def as_coordinator(folder: Path | None, insecure: bool) -> tuple[Credentials | None, Who | None]:
    """The coordinator's credentials out of the authority's `folder`, and who it takes the holder of a certificate for.

    Raises ConfigError where neither or both of `folder` and `insecure` are given, IdentityError where the folder holds none.
    """
    _one(folder, insecure, "--pki FOLDER")
    if folder is None:
        return None, None
    try:
        from atoll.identity import authority, credentials, peers
        from atoll.identity.names import Role
    except ImportError:
        raise missing_extra("cryptography", "net", "certificates") from None
    found = authority.load(folder)
    trusted, sites = found.trust(), frozenset[Role](["site"])
    identify = functools.lru_cache(maxsize=4096)(lambda shown: peers.identify(shown, trusted, roles=sites))

    def name(shown: bytes) -> str:
        who = identify(shown)  # once a certificate: a session asks this at every message
        peers.still_good(who, trusted)
        return who.name

    return plain(credentials.of_coordinator(found)), name


def who_asks(folder: Path | None) -> Who | None:
    """Who the holder of a certificate is who asks the coordinator something: a site by its name, others as ROLE/NAME.

    None without an authority. Raises as `as_coordinator`.
    """
    if folder is None:
        return None
    from atoll.identity import authority, peers

    trusted = authority.load(folder).trust()

    def name(shown: bytes) -> str:
        who = peers.identify(shown, trusted)
        return who.name if who.role == "site" else f"{who.role}/{who.name}"

    return name


def as_site(folder: Path | None, name: str | None, insecure: bool) -> tuple[Credentials | None, str | None]:
    """A site's credentials, and its name as its certificate says it.

    Raises as `as_coordinator`; ConfigError also where the certificate is of another name than `name`.
    """
    _one(folder, insecure, "--identity FOLDER")
    if folder is None:
        return None, name
    try:
        from atoll.identity import credentials
    except ImportError:
        raise missing_extra("cryptography", "net", "certificates") from None
    found = credentials.load(folder)
    if name is not None and found.who.name != name:
        raise ConfigError(f"--site {name}: the certificate in {folder} is of {found.who.name}; leave --site out")
    return plain(found), found.who.name


def _one(folder: Path | None, insecure: bool, option: str) -> None:
    if (folder is None) != insecure:
        told = "not both" if insecure else "the latter without TLS, for a trial on one machine"
        raise ConfigError(f"give {option} or --insecure-loopback: {told}")


def plain(found: Identity) -> Credentials:
    """As TLS is given it."""
    return Credentials(found.key_pem, found.certificate_pem, found.ca_pem)
