"""A token: what lets somebody who has no certificate yet ask for one, once, until it expires.

The text is `ID.SECRET`; the secret has 256 random bits, so its plain SHA-256 tells nothing and is all that is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta

from atoll.errors import NameRefused, TokenRefused
from atoll.identity.authority import Authority
from atoll.identity.ledger import Book, Invitation
from atoll.identity.names import checked_name, checked_role
from atoll.identity.peers import clock

_LONGEST = 128  # ours has 60
_NO_SECRET = bytes(32)


def invite(
    authority: Authority, name: str, *, role: str = "site", life: timedelta = timedelta(hours=24), now: datetime | None = None
) -> str:
    """A token for one certificate of this name and role. It is shown here and never again: only its hash is kept.

    Raises NameRefused for a name or role, and for a name that has another role.
    """
    moment, allowed = now or clock(), checked_role(role)
    if life <= timedelta(0):
        raise NameRefused(f"a token must expire later than now, not after {life}")
    id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    with authority.ledger.transaction() as book:
        has = book.role_of(checked_name(name))
        if has not in (None, allowed):
            raise NameRefused(f"{name!r} is a {has} already, and one name has one role; choose another name for the {allowed}")
        book.invite(Invitation(id, _hash(secret), name, allowed, moment + life))
    return f"{id}.{secret}"


def invitation(book: Book, token: str, now: datetime) -> Invitation:
    """What the token is for, whether or not it was used. Compared in constant time.

    Raises TokenRefused for one that is unknown, withdrawn, or not used in its time.
    """
    id, _, secret = token.strip()[:_LONGEST].partition(".")
    found = book.invitation(id) if id.isascii() else None  # a lone surrogate has no UTF-8 for SQLite to look for
    same = hmac.compare_digest(_hash(secret), found.secret_sha256 if found else _NO_SECRET)
    if found is None or not same:
        raise TokenRefused("no such token was given out here; check that it was copied whole, or ask for a new one")
    if found.withdrawn is not None:
        raise TokenRefused(f"the token for {found.name} was withdrawn; ask for a new one")
    if found.used is None and now >= found.expires:
        raise TokenRefused(f"the token for {found.name} expired at {found.expires:%Y-%m-%d %H:%M} UTC; ask for a new one")
    return found


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
