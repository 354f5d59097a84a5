"""`atoll relay`: one client upward, a coordinator downward; it holds no data, and opens a port for its own sites alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.drain import Drain
from atoll.cli.operation import Shown, left, taking_part
from atoll.cli.voice import DrainS, Format, LogFormat, OpsAt, voice_of


def relay(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the coordinator listens.", show_default=False)],
    region: Annotated[
        Path, typer.Option(metavar="TOML", help="The region: its sites, and when its answer is complete.", show_default=False)
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the region's sites connect; port 0: any free one.")
    ] = "127.0.0.1:0",
    site: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="This relay; with an identity, its certificate says it.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What the relay keeps of open rounds. Else ./NAME.", show_default=False)
    ] = None,
    identity: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Its key and certificate, for the coordinator.", show_default=False)
    ] = None,
    pki: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The region's own authority, for its sites.", show_default=False)
    ] = None,
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="Without TLS both ways, for a trial on this machine alone.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Leave when so many jobs have ended; else stay.", show_default=False)
    ] = None,
    ops: OpsAt = None,
    log_format: LogFormat = Format.text,
    drain_s: DrainS = 30.0,
) -> None:
    """Speak for a region as one client: its sites `atoll join` here, and only the mean of their updates goes on.

    Example: `atoll relay 127.0.0.1:7433 --site coast --region region.toml --listen 127.0.0.1:7533 --insecure-loopback`
    """
    from atoll.deploy.regions.region import load_region
    from atoll.deploy.rotation import kept_by_coordinator, kept_by_site, renewing
    from atoll.deploy.trust import as_coordinator, as_site
    from atoll.errors import ConfigError

    voice, drain = voice_of(log_format), Drain(drain_s, "start the relay again to go on", at_once=True)
    found = load_region(region)
    upward, name = as_site(identity, site, insecure_loopback)
    downward, who = as_coordinator(pki, insecure_loopback)
    if not name:
        raise ConfigError("--site is missing: the name of this relay, as the coordinator's job has it")
    home = folder or Path(name)

    from atoll.deploy.regions.relay import Relay
    from atoll.remote.hub import Hub
    from atoll.remote.link import Link
    from atoll.store import files, lock

    held = lock.Lock(files.make_folder(home) / "lock", f"the folder of the relay {home}")
    hub = Hub(listen, downward, home / "hub", who=who, insecure=insecure_loopback, ask=renewing(pki))
    link = Link(address, upward, name, home / "link", insecure=insecure_loopback)
    try:
        voice.say(f"listening on {hub.address}", "listening", address=hub.address)
        with (
            taking_part(link, home, voice, drain, ops) as line,
            kept_by_site(link, identity, voice.say),
            kept_by_coordinator(hub, pki, voice.say),
        ):
            here, shown = Relay(line, hub, found, home, voice.say), Shown(link, address, voice)
            try:
                here.serve(lambda: shown.look() or (line.done and here.idle) or (jobs is not None and len(here.ended) >= jobs))
            finally:
                here.close()
    finally:
        link.close()
        hub.stop()
        held.release()
    left(drain, here.failed)
