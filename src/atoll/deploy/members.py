"""Who takes part in a deployed job: which site speaks for which client, who has said no, and who may come in later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atoll import catalog
from atoll.deploy.operations.status import shown
from atoll.errors import ConfigError
from atoll.job.check import WIRED, spelling
from atoll.types import ClientId

if TYPE_CHECKING:
    from atoll.job.schema import Job
    from atoll.remote.hub import Hub

WAITING = b"waiting"  # what a refusal is about where it may yet become a consent: the site is waited for
_MOST_REASON = 300  # characters of what a site says
_COUNTED = "population"  # the parameter by which a factory counts all clients


class Members:
    """The members of one job, as the remote engine asks for them."""

    def __init__(self, hub: Hub, job: str, sites: Mapping[ClientId, str]) -> None:
        self._hub, self._job, self._sites = hub, job, dict(sites)

    def site(self, client: ClientId) -> str:
        """Who speaks for it."""
        return self._sites.get(client, client)

    def refusals(self) -> Mapping[ClientId, str]:
        """Clients whose site has said no, and has nothing left to think about; with its reason, as far as its policy lets it."""
        no = {
            site: shown(consent.reason, _MOST_REASON) or "it gives no reason"
            for site, consent in self._hub.consents(self._job).items()
            if not consent.accepted and consent.about != WAITING
        }
        return {client: no[site] for client, site in self._sites.items() if site in no}


def check_growth(job: Job, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a run that was begun with the [sites] of `before` can go on with those of `after`.

    Clients may come in; who leaves is simply not there. What an algorithm has learnt by counting all clients does not fit more.
    """
    was = {client: site for site, clients in before.items() for client in clients}
    now = {client: site for site, clients in after.items() for client in clients}
    for client, site in was.items():
        if now.get(client) != site:
            raise ConfigError(
                f"[sites] the run has begun with {client!r} at {site!r}: leave it there, since who has left is not waited for; "
                f"or give the job another name, and it begins anew"
            )
    if now == was:
        return
    check_counts(job, f"[sites] had {len(was)} clients when the run began, and now has {len(now)}")


def check_counts(job: Job, why: str) -> None:
    """Raise ConfigError where a part of the job counts all clients, whose number is to change."""
    chosen = [("algorithm", job.algorithm), *(("transform", each) for each in job.transforms)]
    for kind, named in chosen:
        for parameter in catalog.find(kind, named.name).parameters:
            key = spelling(parameter)
            if parameter.name == _COUNTED and _COUNTED in WIRED[kind] and key not in named.parameters:
                raise ConfigError(
                    f"[{kind}] {named.name} counts all clients, and {why}: begin under another name with {key} set to the most "
                    f"that there may be, or let their number be"
                )
