"""`atoll pki`: who may speak in a deployed federation: the authority, the tokens it gives out, the certificates it made."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.identity.authority import Authority
    from atoll.identity.credentials import Credentials
    from atoll.identity.ledger import Invitation, Issued

FOLDER = "ATOLL_PKI"
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}

app = typer.Typer(no_args_is_help=True, help="Say who may speak in a deployed federation: tokens and certificates.")

Place = Annotated[
    Path | None,
    typer.Option("--pki", metavar="FOLDER", help="The authority's folder. Else $ATOLL_PKI, else ./pki.", show_default=False),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="NAME|ADDRESS", help="A DNS name or address of the coordinator; may be repeated."),
]

Own = Annotated[Path, typer.Option("--identity", metavar="FOLDER", help="Where the site keeps its key and certificate.")]


@app.callback()
def group() -> None:
    """Say who may speak in a deployed federation: tokens and certificates."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, on the coordinator's machine.")],
    name: Annotated[str, typer.Option("--name", metavar="DOMAIN", help="The federation's name, such as trial.example.")],
    host: Hosts = None,
) -> None:
    """Make the authority of a federation, and its coordinator's certificate.

    Example: `atoll pki init pki --name trial.example --host coordinator.trial.example --host 192.0.2.7`
    """
    _needed()
    from atoll.identity.authority import create

    made = create(folder, name, host or [])
    typer.echo(f"authority of {made.domain}: {made.folder}")
    typer.echo(f"its SHA-256: {made.sha256}")
    typer.echo(f"Keep {made.folder} on the coordinator's machine, and a copy of it offline: whoever reads ca.key can be anybody.")
    typer.echo(f"Next, for each site: atoll pki token SITE --pki {folder}, and atoll pki listen HOST:PORT --pki {folder}")


@app.command()
def token(
    site: Annotated[str, typer.Argument(metavar="SITE", help="Whom it is for, such as hospital-a.")],
    role: Annotated[str, typer.Option(help="site, researcher, auditor or admin.")] = "site",
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it can be used: 30m, 24h, 7d.")] = "24h",
    pki: Place = None,
) -> None:
    """Make a token with which a site gets its certificate: for one use, shown once.

    Example: `atoll pki token hospital-a --expires 7d`
    """
    authority, life = _authority(pki), duration(expires)
    from atoll.identity.tokens import Ticket, invite

    text = Ticket(site, invite(authority, site, role=role, life=life), authority.sha256)
    until = datetime.now(UTC) + life
    typer.echo(f"{site} ({role}) gets its certificate with this, once, until {until:%Y-%m-%d %H:%M} UTC:\n")
    if role == "site":
        typer.echo(f"  atoll join HOST:PORT --token {text}\n")
        typer.echo("HOST:PORT is where `atoll serve` listens, and the port after it gives certificates: `atoll serve` does")
        typer.echo("that with --enrol, or `atoll pki listen`. The key is made at the site and stays there.")
    else:
        typer.echo(f"  atoll pki enrol HOST:PORT --token {text}\n")
        typer.echo("HOST:PORT is where `atoll pki listen`, or `atoll serve` with --enrol, gives certificates.")
    typer.echo(f"Send it to whoever is {site}, in a way that nobody else reads or changes: who uses it first is {site}.")
    typer.echo("It is not kept here.")


@app.command()
def listen(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where to listen, such as 0.0.0.0:7434.")], pki: Place = None
) -> None:
    """Give certificates to who has a token, and new ones to who has one, until Ctrl-C.

    It is a port of its own: where `atoll serve` listens, nobody is heard without a certificate. Example:
    `atoll pki listen 0.0.0.0:7434`
    """
    import time

    _authority(pki)
    from atoll.deploy.enrol import listening

    port = listening(_folder(pki), address)
    typer.echo(f"listening on {port.address}")
    try:
        while True:
            time.sleep(1.0)
    finally:
        port.close()


@app.command()
def enrol(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where `atoll pki listen` answers.")],
    token: Annotated[str, typer.Option(envvar="ATOLL_TOKEN", help="The token.", show_default=False)],
    identity: Own = Path("identity"),
) -> None:
    """Get the certificate that a token buys; the key is made here and stays here. After a crash, say it again.

    `atoll join` with a token does it too. Example: `atoll pki enrol coordinator.trial.example:7434 --token ...`
    """
    _needed()
    from atoll.deploy.enrol import bought
    from atoll.identity.credentials import load

    _say_whose(bought(address, identity, token) or load(identity), identity)


@app.command("list")
def list_(pki: Place = None) -> None:
    """List the certificates and the open tokens.

    Example: `atoll pki list --pki /srv/atoll/pki`
    """
    from rich.console import Console
    from rich.table import Table

    authority, now = _authority(pki), datetime.now(UTC)
    with authority.ledger.transaction() as book:
        certificates, invitations = book.certificates(), book.invitations()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "role", "state", "until (UTC)", "serial"):
        table.add_column(column, overflow="fold")
    for each in certificates:
        table.add_row(each.name, each.role, _state(each, now), f"{each.expires:%Y-%m-%d %H:%M}", each.serial)
    for invited in invitations:
        if _open(invited, now):
            table.add_row(invited.name, invited.role, "token not used", f"{invited.expires:%Y-%m-%d %H:%M}", "")
    Console().print(table)
    typer.echo(f"authority of {authority.domain}, SHA-256 {authority.sha256}")


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|SERIAL", help="All of a name, or one certificate.")], pki: Place = None
) -> None:
    """Take back the certificates and open tokens of a name, or one certificate, from the next message on.

    Examples: `atoll pki revoke hospital-a`, `atoll pki revoke 5f0c...`
    """
    authority = _authority(pki)
    from atoll.identity.revocation import revoke as take_back

    gone = take_back(authority, which)
    for each in gone:
        typer.echo(f"revoked: {each.name} ({each.role}), serial {each.serial}")
    if not gone:
        typer.echo(f"{which}: no certificate was left to revoke; its open tokens, if there were any, are withdrawn")


@app.command()
def renew(
    address: Annotated[
        str | None, typer.Argument(metavar="[HOST:PORT]", help="At a site: where `atoll pki listen` answers.", show_default=False)
    ] = None,
    identity: Own = Path("identity"),
    host: Hosts = None,
    pki: Place = None,
) -> None:
    """Make a new key and certificate: of the site that says where to ask, else of the coordinator whose authority is here.

    The old one stays good until it expires. Examples: `atoll pki renew coordinator.trial.example:7434 --identity identity`,
    `atoll pki renew --host 192.0.2.8`
    """
    if address is not None:
        _needed()
        from atoll.deploy.enrol import renewed

        _say_whose(renewed(address, identity), identity)
        return
    authority = _authority(pki)
    from atoll.identity.authority import renew_coordinator

    made = renew_coordinator(authority, host or [])
    typer.echo(
        f"the coordinator's certificate is good until {made.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; a coordinator that runs"
    )
    typer.echo("takes it up within seconds")


def duration(text: str) -> timedelta:
    """A time such as 30m, 24h, 7d. Raises ConfigError.

    >>> duration("24h")
    datetime.timedelta(days=1)
    """
    from atoll.errors import ConfigError

    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text, re.ASCII)
    if found is None:
        raise ConfigError(f"{text!r} is no time; write a number and m, h or d, such as 30m, 24h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _authority(place: Path | None) -> Authority:
    _needed()
    from atoll.identity.authority import load

    return load(_folder(place))


def _folder(place: Path | None) -> Path:
    return place or Path(os.environ.get(FOLDER) or "pki")


def _say_whose(own: Credentials, folder: Path) -> None:
    typer.echo(f"{own.who.name} ({own.who.role}): {folder}, good until {own.who.expires:%Y-%m-%d %H:%M} UTC; renew it before")


def _needed() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        from atoll.errors import missing_extra

        raise missing_extra("cryptography", "net", "certificates") from None


def _state(issued: Issued, now: datetime) -> str:
    if issued.revoked is not None:
        return "revoked"
    return "good" if now <= issued.expires else "expired"


def _open(invited: Invitation, now: datetime) -> bool:
    return invited.used is None and invited.withdrawn is None and now < invited.expires
