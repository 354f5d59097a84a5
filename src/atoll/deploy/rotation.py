"""Certificates change while jobs run: each end renews its own when it is due, and who was revoked is expelled.

A site asks over its own session, so that it needs no port but the coordinator's. What another process has put into a folder,
such as `atoll pki renew`, is taken up too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atoll.deploy.enrol import exchanged
from atoll.deploy.trust import plain
from atoll.errors import AtollError
from atoll.remote.hub import Hub
from atoll.remote.link import Link

RENEW = "renew"  # the question for a new certificate, as `Link.ask` puts it
SITE_S, COORDINATOR_S = 30.0, 2.0  # between two looks
Asked = Callable[[str, str, bytes], bytes]  # (site, question, body) -> body
Now = Callable[[], datetime]


def utc() -> datetime:
    """The time."""
    return datetime.now(UTC)


class SiteCertificate:
    """A site's certificate and the link that uses it."""

    def __init__(self, link: Link, folder: Path, say: Callable[[str], None], now: Now = utc) -> None:
        """`folder`: the identity that the link was given. Raises as `credentials.load` does."""
        from atoll.identity import credentials

        self._link, self._folder, self._say, self._now = link, folder, say, now
        self._used = credentials.load(folder, now=now()).certificate_pem

    def look(self) -> None:
        """Renew what is due, and give the link what is new: its session is made anew, its work goes on.

        Raises AtollError where there is no new certificate to be had now; the next look asks again, with the same key.
        """
        from atoll.identity import credentials

        now = self._now()
        own = credentials.load(self._folder, now=now)
        if own.due(now):
            own = exchanged(own, self._folder, lambda question: self._link.ask(RENEW, question), now)
        if own.certificate_pem != self._used:
            self._link.renew(plain(own))
            self._used = own.certificate_pem
            self._say(f"this site has a new certificate, good until {own.who.expires:%Y-%m-%d %H:%M} UTC")


class CoordinatorCertificate:
    """The coordinator's certificate, its list of the revoked, and the hub that goes by them."""

    def __init__(self, hub: Hub, folder: Path, say: Callable[[str], None], now: Now = utc) -> None:
        """`folder`: the authority's. Raises IdentityError."""
        from atoll.identity import authority, credentials

        self._hub, self._say, self._now = hub, say, now
        self._authority = authority.load(folder)
        self._revoked = frozenset(self._authority.trust().revoked())
        self._used = credentials.of_coordinator(self._authority, now=now()).certificate_pem

    def look(self) -> None:
        """Take what is new into use, and end the sessions of those whose certificate was revoked. Raises IdentityError."""
        from atoll.identity import credentials

        own = credentials.of_coordinator(self._authority, now=self._now())
        if own.certificate_pem != self._used:
            self._hub.renew(plain(own))
            self._used = own.certificate_pem
            self._say(f"the coordinator has a new certificate, good until {own.who.expires:%Y-%m-%d %H:%M} UTC")
        gone = frozenset(self._authority.trust().revoked()) - self._revoked
        if gone:
            with self._authority.ledger.transaction() as book:
                names = {each.name for each in book.certificates() if each.serial in gone}
            for name in sorted(names):  # whoever has another certificate that is good is back at once
                self._hub.expel(name)
                self._say(f"{name}: a certificate was revoked, and its session is ended")
            self._revoked |= gone


def renewing(folder: Path | None, otherwise: Asked | None = None, now: Now = utc) -> Asked | None:
    """What answers sites that ask for a new certificate, and leaves other questions to `otherwise`. None: nobody is answered."""
    if folder is None:
        return otherwise
    from atoll.errors import RemoteError
    from atoll.identity import authority, messages

    found = authority.load(folder)

    def asked(site: str, question: str, body: bytes) -> bytes:
        if question == RENEW:
            return messages.answer(found, body, now=now())
        if otherwise is None:
            raise RemoteError(
                f"the coordinator does not know the question {question[:80]!r}; use one release of atoll at both ends"
            )
        return otherwise(site, question, body)

    return asked


def kept_by_site(link: Link, folder: Path | None, say: Callable[[str], None]) -> AbstractContextManager[object]:
    """Look after a site's certificate until the block ends; nothing without TLS. Raises IdentityError."""
    return Watch(SiteCertificate(link, folder, say).look, say, SITE_S) if folder else nullcontext()


def kept_by_coordinator(hub: Hub, folder: Path | None, say: Callable[[str], None]) -> AbstractContextManager[object]:
    """Look after the coordinator's certificate and the revoked until the block ends; without TLS, do nothing.

    Raises IdentityError.
    """
    return Watch(CoordinatorCertificate(hub, folder, say).look, say, COORDINATOR_S) if folder else nullcontext()


class Watch:
    """Owns a thread that looks now and then, until the block ends. What can't be done is said once, and tried again."""

    def __init__(self, look: Callable[[], None], say: Callable[[str], None], every_s: float) -> None:
        self._look, self._say, self._every_s, self._over = look, say, every_s, threading.Event()
        self._thread = threading.Thread(target=self._forever, name="atoll-rotation", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join(5.0)

    def _forever(self) -> None:
        told = ""
        while not self._over.wait(self._every_s):
            try:
                self._look()
                told = ""
            except AtollError as error:
                if str(error) != told:
                    told = str(error)
                    self._say(f"certificates: {told}")
