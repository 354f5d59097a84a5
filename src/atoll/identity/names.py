"""What a certificate calls its holder: `spiffe://DOMAIN/ROLE/NAME`, after the SPIFFE ID specification, section 2.

We are stricter than it: small letters only, so that two names never differ in nothing but case, and no percent sign. A
name may be used as that of a file.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, get_args

from atoll.errors import NameRefused

Role = Literal["site", "researcher", "auditor", "admin", "coordinator"]
ROLES: tuple[Role, ...] = get_args(Role)
COORDINATOR: Role = "coordinator"
INVITED = tuple(role for role in ROLES if role != COORDINATOR)  # what a token may be for

_WORD = r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.))*(?<![._-])"
_NAME = re.compile(rf"(?=.{{1,63}}\Z){_WORD}", re.ASCII)  # X.509 lets a common name have 64 characters
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.ASCII)


def checked_name(name: str, what: str = "name") -> str:
    """The name, when a certificate may carry it. Raises NameRefused.

    >>> checked_name("st-mary.cardiology")
    'st-mary.cardiology'
    >>> checked_name("../admin")
    Traceback (most recent call last):
    atoll.errors.NameRefused: the name '../admin' can't be used: 1 to 63 of the characters a-z 0-9 . _ -, a letter or digit at
    both ends, no two dots in a row
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise NameRefused(
            f"the {what} {name!r} can't be used: 1 to 63 of the characters a-z 0-9 . _ -, a letter or digit at both ends, "
            "no two dots in a row"
        )
    return name


def checked_role(role: str) -> Role:
    """The role, when a token may be for it. Raises NameRefused.

    >>> checked_role("site")
    'site'
    """
    for known in INVITED:
        if role == known:
            return known
    raise NameRefused(f"there is no role {role!r}: a token is for one of {', '.join(INVITED)}")


def checked_host(host: str) -> str | ipaddress.IPv4Address | ipaddress.IPv6Address:
    """A DNS name, in small letters, or an address, under which the coordinator is reached. Raises NameRefused.

    >>> checked_host("Coordinator.example.org")
    'coordinator.example.org'
    >>> checked_host("::1")
    IPv6Address('::1')
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or host.rpartition(".")[2].isdigit():
        raise NameRefused(f"{host!r} is neither a DNS name nor an address; give what sites connect to, without port or '*'")
    return host.lower()


def uri(domain: str, role: Role, name: str) -> str:
    """What the certificate says.

    >>> uri("trial.example", "site", "hospital-a")
    'spiffe://trial.example/site/hospital-a'
    """
    return f"spiffe://{domain}/{role}/{name}"


def read_uri(text: str, domain: str) -> tuple[Role, str] | None:
    """(role, name) of a URI that `uri` wrote for the domain, or None: anything else names nobody.

    >>> read_uri("spiffe://trial.example/site/hospital-a", "trial.example")
    ('site', 'hospital-a')
    >>> read_uri("spiffe://trial.example/site/../admin/eve", "trial.example") is None
    True
    """
    for role in ROLES:
        before = uri(domain, role, "")
        if text.startswith(before) and _NAME.fullmatch(text[len(before) :]):
            return role, text[len(before) :]
    return None
