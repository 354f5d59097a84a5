"""`atoll join`: a site of deployed jobs. It opens no port."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.drain import Drain
from atoll.cli.operation import Shown, left, taking_part
from atoll.cli.voice import DrainS, Format, LogFormat, OpsAt, voice_of


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
        Path | None, typer.Option(metavar="FOLDER", help="The site's key and certificate; else ./identity.", show_default=False)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="ATOLL_TOKEN", help="From `atoll pki token`: gets the certificate first.", show_default=False),
    ] = None,
    enrol: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where certificates are given; else the port after the coordinator's.", show_default=False
        ),
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
    ops: OpsAt = None,
    log_format: LogFormat = Format.text,
    drain_s: DrainS = 30.0,
) -> None:
    """Take part in the coordinator's jobs with this site's data, until Ctrl-C; joining again goes on.

    Examples: `atoll join coordinator.trial.example:7433 --token ...`, and from then on without the token;
    `atoll join 127.0.0.1:7433 --site north --insecure-loopback`
    """
    from atoll.deploy.enrol import identity_at
    from atoll.deploy.rules.policy import load_policy
    from atoll.deploy.trust import as_site
    from atoll.errors import ConfigError
    from atoll.job.text import load
    from atoll.store.keys import Keys

    voice, drain = voice_of(log_format), Drain(drain_s, "join again to go on", at_once=True)
    own = None if data is None else load(data)
    rules = None if policy is None else load_policy(policy)
    identity = identity_at(identity, token, enrol, address, insecure_loopback, voice.say)
    credentials, name = as_site(identity, site, insecure_loopback)
    keys = Keys.from_environment()  # of what the site keeps
    if not name:
        raise ConfigError("--site is missing: the name of this site, as the coordinator's job has it")
    home = folder or Path(name)

    from atoll.deploy.rotation import kept_by_site
    from atoll.deploy.rules.gate import Gate
    from atoll.deploy.rules.gated import Gated
    from atoll.deploy.rules.judge import reading
    from atoll.deploy.rules.willing import Willing
    from atoll.deploy.site import Site
    from atoll.remote.link import Link
    from atoll.store import files, lock

    held = lock.Lock(files.make_folder(home) / "lock", f"the folder of the site {home}")
    link = Link(address, credentials, name, home / "link", insecure=insecure_loopback)
    try:
        with taking_part(link, home, voice, drain, ops) as line, kept_by_site(link, identity, voice.say), reading(rules):
            gated = None if rules is None else Gated(line, Gate(home, rules, address), own)
            here = Site(gated or Willing(line, home, address), home, own, voice.say, keys, gated.built if gated else None)
            shown = Shown(link, address, voice)
            here.serve(lambda: shown.look() or line.done or (jobs is not None and len(here.ended) >= jobs))
    finally:
        link.close()
        held.release()
    left(drain, here.failed)
