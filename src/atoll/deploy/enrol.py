"""How an end gets its certificate over the network: the authority's port, and who asks there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.errors import ConfigError, IdentityError, RemoteError, missing_extra
from atoll.remote.enrolment import Enrolment, ask, shown_chain
from atoll.remote.values import Credentials

if TYPE_CHECKING:
    from atoll.identity.credentials import Credentials as Identity
    from atoll.identity.tokens import Ticket

IDENTITY = Path("identity")  # a site's own, where no other folder is named


def listening(folder: Path, address: str) -> Enrolment:
    """The port at which the authority of `folder` gives certificates to who has a token or an old one; close it at the end.

    Raises IdentityError, RemoteError.
    """
    try:
        from atoll.identity import authority, credentials, messages
    except ImportError:
        raise missing_extra("cryptography", "net", "certificates") from None
    found = authority.load(folder)

    def shown() -> Credentials:
        own = credentials.of_coordinator(found)
        return Credentials(own.key_pem, own.chain_pem, own.ca_pem)

    return Enrolment(address, shown, lambda question: messages.answer(found, question))


def enrolled(address: str, folder: Path, name: str, token: str, sha256: str) -> Identity:
    """The certificate that a token buys, kept in the site's `folder`; asked again after a crash, it is the same one.

    Raises IdentityError, ForeignCertificate where the server has not this SHA-256, RemoteError.
    """
    try:
        from atoll.identity import credentials, messages, peers
    except ImportError:
        raise missing_extra("cryptography", "net", "certificates") from None
    ca_pem = peers.authority_among(shown_chain(address), sha256)
    answer = ask(address, ca_pem, messages.with_token(token, credentials.prepare(folder, name)))
    return credentials.accept(folder, name, answer, ca_pem, sha256=sha256)


def bought(address: str, folder: Path, text: str) -> Identity | None:
    """The certificate that a token (`tokens.Ticket`) buys; None where the folder has had it: a token may be given at each start.

    Raises as `enrolled`; TokenRefused where the text is none; IdentityError also where the folder is another's.
    """
    try:
        from atoll.identity import credentials, files, tokens
    except ImportError:
        raise missing_extra("cryptography", "net", "certificates") from None
    ticket, mark = tokens.ticket(text), folder / "token"
    told = files.read(mark).decode(errors="replace") if mark.exists() else ""
    if told == f"used {ticket.id}" or (told == f"asking {ticket.id}" and credentials.waiting(folder) is None):
        return None
    _refuse_another(folder, ticket)
    if told != f"asking {ticket.id}":
        (folder / "next.key").unlink(missing_ok=True)  # of another question: one key is one certificate's
    credentials.prepare(folder, ticket.name)
    files.write(mark, f"asking {ticket.id}".encode(), private=True)
    got = enrolled(address, folder, *ticket)
    files.write(mark, f"used {ticket.id}".encode(), private=True)
    return got


def _refuse_another(folder: Path, ticket: Ticket) -> None:
    from atoll.identity import credentials

    held = credentials.holder(folder)
    if held not in (None, ticket.name):
        raise IdentityError(f"{folder} holds the identity of {held}, and the token is for {ticket.name}; name another --identity")


def identity_at(
    folder: Path | None,
    token: str | None,
    enrol_at: str | None,
    address: str,
    insecure: bool,
    say: Callable[[str], None],
    again_s: float = 2.0,
) -> Path | None:
    """Where a site's identity lies (else in `./identity`), its certificate bought with `token` where it has not been.

    `enrol_at`: where certificates are given, else `beside` the coordinator's `address`. None: without TLS. Where
    nobody answers, it is tried again, as a session is: what is started first does not matter. Raises as `bought`, but for that.
    """
    if token is not None:
        folder = folder or IDENTITY
        got = _insisted(enrol_at or beside(address), folder, token, say, again_s)
        if got is not None:
            say(f"{folder}: the certificate of {got.who.name}, good until {got.who.expires:%Y-%m-%d %H:%M} UTC")
    elif folder is None and not insecure and (IDENTITY / "identity.pem").exists():
        folder = IDENTITY
    return folder


def _insisted(address: str, folder: Path, token: str, say: Callable[[str], None], again_s: float) -> Identity | None:
    """`bought`, once somebody is there to ask."""
    beside(address)  # raises where it is no address, at which nobody will ever be
    told = False
    while True:
        try:
            return bought(address, folder, token)
        except RemoteError as error:
            if not told:
                say(f"{error}; it is tried again until somebody answers")
            told = True
            time.sleep(again_s)


@contextlib.contextmanager
def giving(folder: Path | None, address: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """Give certificates at `address`, where there is one, until the block ends. Raises as `listening`."""
    if address is None:
        yield
        return
    if folder is None:
        raise ConfigError("--enrol gives certificates of an authority: name its folder, --pki FOLDER")
    port = listening(folder, address)
    try:
        say(f"giving certificates on {port.address}")
        yield
    finally:
        port.close()


def beside(address: str) -> str:
    """Where certificates are given if nobody says otherwise: the port after the coordinator's.

    Raises ConfigError for what is no address.

    >>> beside("coordinator.trial.example:7433")
    'coordinator.trial.example:7434'
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65534:
        raise ConfigError(
            f"{address!r}: there is no port after this one to get a certificate at; write HOST:PORT, or give --enrol"
        )
    return f"{host}:{int(port) + 1}"


def renewed(address: str, folder: Path) -> Identity:
    """A new certificate in the place of the one in `folder`, which is still good; asked for at the authority's port.

    Raises as `exchanged`, RemoteError.
    """
    try:
        from atoll.identity import credentials
    except ImportError:
        raise missing_extra("cryptography", "net", "certificates") from None
    own = credentials.load(folder)
    return exchanged(own, folder, lambda question: ask(address, own.ca_pem, question))


def exchanged(own: Identity, folder: Path, asked: Callable[[bytes], bytes], now: datetime | None = None) -> Identity:
    """A new certificate in the place of `own`, which `folder` holds: what `asked` answers to the question is kept there.

    Raises what `asked` raises; IdentityError where the answer is not what was asked for.
    """
    from atoll.identity import credentials, messages

    answer = asked(messages.with_certificate(own, credentials.prepare(folder, own.who.name)))
    got = credentials.accept(folder, own.who.name, answer, own.ca_pem, now=now)
    if got.who.role != own.who.role:
        raise IdentityError(f"{own.who.name} was a {own.who.role} and is a {got.who.role} now; ask whoever runs the authority")
    return got
