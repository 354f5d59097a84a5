"""How an end gets its certificate over the network: the authority's port, and who asks there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atoll.errors import IdentityError, missing_extra
from atoll.remote.enrolment import Enrolment, ask, shown_chain
from atoll.remote.values import Credentials

if TYPE_CHECKING:
    from atoll.identity.credentials import Credentials as Identity


def listening(folder: Path, address: str) -> Enrolment:
    """The port at which the authority of `folder` gives certificates to who has a token or an old one; close it at the end.

    Raises IdentityError, RemoteError.
    """
    try:
        from atoll.identity import authority, credentials, messages
    except ImportError:
        raise missing_extra("cryptography", "net", "certificates") from None
    found = authority.load(folder)
    own = credentials.of_coordinator(found)
    shown = Credentials(own.key_pem, own.chain_pem, own.ca_pem)
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


def renewed(address: str, folder: Path) -> Identity:
    """A new certificate in the place of the one in `folder`, which is still good.

    Raises as `enrolled`, and CertificateExpired.
    """
    try:
        from atoll.identity import credentials, messages
    except ImportError:
        raise missing_extra("cryptography", "net", "certificates") from None
    own = credentials.load(folder)
    answer = ask(address, own.ca_pem, messages.with_certificate(own, credentials.prepare(folder, own.who.name)))
    got = credentials.accept(folder, own.who.name, answer, own.ca_pem)
    if got.who.role != own.who.role:
        raise IdentityError(f"{own.who.name} was a {own.who.role} and is a {got.who.role} now; ask whoever runs the authority")
    return got
