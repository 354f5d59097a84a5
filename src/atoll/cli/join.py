"""`atoll join`: a site of deployed jobs. It opens no port."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.guard import Stopped

if TYPE_CHECKING:
    from atoll.remote.link import Link


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the coordinator listens.", show_default=False)],
    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="This site; with an identity, its certificate says it.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="A file whose [data] is this site's own; else the job's.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="What the site keeps: client memory, outbox. Else ./NAME.", show_default=False),
    ] = None,
    identity: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The site's key and certificate.", show_default=False)
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="What it takes part in and lets leave; else anything.", show_default=False),
    ] = None,
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="Without TLS, for a trial on this machine alone.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Leave when so many jobs have ended; else stay.", show_default=False)
    ] = None,
) -> None:
    """Take part in the coordinator's jobs with this site's data, until Ctrl-C; joining again goes on.

    Example: `atoll join 127.0.0.1:7433 --site north --insecure-loopback`
    """
    from atoll.deploy.policy import load_policy
    from atoll.deploy.trust import as_site
    from atoll.errors import ConfigError
    from atoll.job.text import load

    own = None if data is None else load(data)
    rules = None if policy is None else load_policy(policy)
    credentials, name = as_site(identity, site, insecure_loopback)
    if not name:
        raise ConfigError("--site is missing: the name of this site, as the coordinator's job has it")
    home = folder or Path(name)

    from atoll.deploy.gate import Gate
    from atoll.deploy.gated import Gated
    from atoll.deploy.site import Site
    from atoll.remote.link import Link
    from atoll.store import files, lock

    held = lock.Lock(files.make_folder(home) / "lock", f"the folder of the site {home}")
    before = {each: signal.signal(each, _end) for each in (signal.SIGINT, signal.SIGTERM)}
    link = Link(address, credentials, name, home / "link", insecure=insecure_loopback)
    try:
        line = link if rules is None else Gated(link, Gate(home, rules, address), own)
        here = Site(line, home, own, typer.echo)
        shown = Shown(link, address)
        here.serve(lambda: shown.look() or (jobs is not None and len(here.ended) >= jobs))
    finally:
        for each in before:  # this process only ends: one more Ctrl-C has nothing to stop
            signal.signal(each, signal.SIG_IGN)
        link.close()
        held.release()
        for each, handler in before.items():
            signal.signal(each, handler)


def _end(number: int, _: Any) -> None:
    raise Stopped("stopped; join again to go on")


class Shown:
    """Says when the session comes and goes, once each time."""

    def __init__(self, link: Link, address: str) -> None:
        self._link, self._address, self._last = link, address, ""

    def look(self) -> bool:
        """False: nothing here ends the site."""
        online = self._link.online
        told = f"connected to {self._address}" if online else self._link.trouble
        if told and told != self._last:
            typer.echo(told, err=not online)
            self._last = told
        return False
