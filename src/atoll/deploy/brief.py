"""What a coordinator tells a site of a job: the job file's values and the names of all clients, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from atoll.errors import ConfigError
from atoll.job.check import check
from atoll.job.schema import Job
from atoll.job.text import Document
from atoll.types import ClientId


def brief_of(values: Mapping[str, Any], population: Iterable[str], signature: bytes = b"") -> bytes:
    """The brief of a job whose file says `values`, with the signature of who vouches for it.

    >>> brief_of({"rounds": 2}, ["north", "south"])
    b'{"job": {"rounds": 2}, "population": ["north", "south"]}'
    """
    signed = {"signature": signature.hex()} if signature else {}
    return json.dumps({"job": values, "population": sorted(population), **signed}).encode()


def job_of(brief: bytes) -> tuple[Job, tuple[ClientId, ...]]:
    """The job, checked here as any job file is, and the names of all its clients.

    Raises:
        ConfigError: the brief is none.
        JobError: the job has problems on this machine, such as a package that is absent.
    """
    try:
        told = json.loads(brief)
        values, population = dict(told["job"]), tuple(ClientId(str(name)) for name in told["population"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"the coordinator's brief makes no sense ({error!r}); use one release of atoll at both ends") from error
    return check(Document(values, "the coordinator's job", {}, {})), population


def said_by(brief: bytes) -> tuple[dict[str, Any], bytes]:
    """What the job file says, and its signature (b"": none), in a brief that `job_of` has read. Raises ConfigError."""
    said = json.loads(brief)
    try:
        return dict(said["job"]), bytes.fromhex(said.get("signature", ""))
    except (ValueError, TypeError):
        raise ConfigError(
            "the signature in the coordinator's brief makes no sense; use one release of atoll at both ends"
        ) from None


def sites_of(job: Job, population: Iterable[ClientId]) -> dict[ClientId, str]:
    """Which site speaks for each client: as [sites] says, else each client's site bears its name.

    Raises:
        ConfigError: [sites] names a client that there is not, names one twice, or leaves one out.
    """
    everybody = list(population)
    if not job.seats:
        return {client: str(client) for client in everybody}
    found: dict[ClientId, str] = {}
    for site, clients in job.seats.items():
        for client in map(ClientId, clients):
            if client in found:
                raise ConfigError(f"[sites] gives {client!r} to {found[client]!r} and to {site!r}; a client is at one site")
            found[client] = site
    if odd := sorted(found.keys() ^ set(everybody)):
        what = "is no client of the data" if odd[0] in found else "is at no site; give it to one"
        raise ConfigError(f"[sites] client {odd[0]!r} {what}")
    return found
