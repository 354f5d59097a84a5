"""A token: what lets somebody who has no certificate yet ask for one, once, until it expires.

What the coordinator knows is `ID.SECRET`; the secret has 256 random bits, so its plain SHA-256 tells nothing and is all that is
kept. What is sent to a site is a `Ticket`, which says its name and the authority too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta
from typing import NamedTuple

from atoll.errors import NameRefused, TokenRefused
from atoll.identity.authority import Authority
from atoll.identity.ledger import Book, Invitation
from atoll.identity.names import checked_name, checked_role
from atoll.identity.peers import clock

_LONGEST = 128  # ours has 60
_NO_SECRET = bytes(32)


class Ticket(NamedTuple):
    """All that a site needs to get its certificate, but where to ask.

    >>> ticket(str(Ticket("hospital-a", "4f0c.c2Vj", "ab" * 32))).name
    'hospital-a'
    """

    name: str
    token: str  # ID.SECRET
    sha256: str  # of the authority that takes it

    def __str__(self) -> str:
        return ".".join(self)

    @property
    def id(self) -> str:
        """What the ledger calls the token: no secret."""
        return self.token.partition(".")[0]


def ticket(text: str) -> Ticket:
    """What a ticket says. Raises TokenRefused for what is none; NameRefused.

    >>> ticket("4f0c.c2Vj")
    Traceback (most recent call last):
    atoll.errors.TokenRefused: this is no token as `atoll pki token` prints it; copy it whole, from the name to the last digit
    """
    parts = text.strip().rsplit(".", 3)
    if len(parts) != 4 or not all(parts) or not re.fullmatch("[0-9a-f]{64}", parts[3]):
        raise TokenRefused("this is no token as `atoll pki token` prints it; copy it whole, from the name to the last digit")
    return Ticket(checked_name(parts[0]), f"{parts[1]}.{parts[2]}", parts[3])


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
