"""The coordinator: each of its jobs is the ordinary federation over the remote engine, in a thread, kept in an ordinary run."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from atoll.deploy.brief import brief_of, sites_of
from atoll.deploy.cohort import Cohort
from atoll.deploy.guests import Grown, Guests
from atoll.deploy.members import Members, check_counts, check_growth
from atoll.engines.absence import Absence, Terms
from atoll.engines.remote import DRAWING, Place, Remote
from atoll.errors import ConfigError, DataError, RoundError
from atoll.interfaces import Engine, Memories, Sink
from atoll.job.build import build, data_of, dataset_of, make
from atoll.job.execution import Outcome, carry_out
from atoll.job.text import Document
from atoll.remote.spool import spelled
from atoll.types import Batch, ClientId, Dataset, Local, Tree, Update

if TYPE_CHECKING:
    from torch import Tensor

    from atoll.engines.serial import Clients
    from atoll.federation import Federation
    from atoll.job.schema import Job
    from atoll.policy import Policy
    from atoll.remote.hub import Hub
    from atoll.store.run import Run
    from atoll.store.runs import Store

_USUAL_S = 2.0  # in which sites that are there say that they know


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A factory of the engine of one deployed run."""

    hub: Hub
    run: str
    accepted: set[Place]
    cohort: Cohort
    terms: Terms
    members: Members
    absence: Absence
    wait: Callable[[], None]

    def __call__(self, locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories) -> Engine:
        """As `Federation` makes an engine."""
        mine = self.hub, self.run, self.accepted, self.cohort
        return Remote(*mine, locals_, clients, memories, self.terms, self.members, self.wait, self.absence)

    def __str__(self) -> str:
        return "remote"


def coordinate(
    hub: Hub,
    job: Job,
    values: Mapping[str, Any],
    run: Run,
    sinks: Sequence[Sink] = (),
    say: Callable[[str], None] = lambda _: None,
    each_round: Callable[[int, Tree], None] | None = None,
    wait: Callable[[], None] = lambda: None,
    patience_s: float = 300.0,
    data: Document | Literal["none"] | None = None,
    signature: bytes = b"",
    start_with: int | None = None,
) -> Outcome:
    """Train what the job describes with the sites that come for it, going on from the run's last checkpoint.

    `values`: what the job file says, which the sites are told. `wait` is called while nothing happens; an exception from it,
    from `each_round` or from a sink stops the job here, and a later call goes on. `patience_s`: for sites that are not there.
    `data`: whose held-out examples judge the model, in the place of the job's own data; "none": nothing is held out here.
    Then [sites] says who the clients are, and no client's data is read at the coordinator.
    `signature`: of who vouches for the job, for sites that ask for it.
    `start_with`: sites with which the job begins, and without which it does not; None: it waits for all, for `patience_s`.

    Raises:
        AtollError: as `carry_out`; ConfigError also where [sites] does not fit, or the job is one for virtual time.
    """
    refuse(job)
    safe, absence = list(_safe(run)), Absence()
    guests = _guests(hub, job, run, lambda sites: brief_of(values, sites, signature), safe, data)

    def look() -> None:
        wait()
        if guests is not None:
            guests.look()

    def between(rounds: int, parameters: Tree) -> None:
        if each_round is not None:
            each_round(rounds, parameters)
        if guests is not None and rounds < job.rounds and guests.newcomers():
            raise Grown

    def made(job: Job) -> Federation:
        if guests is not None:
            guests.gather(max(start_with or 1, _asked(job)), look)
            job = guests.seated(job)
        with DRAWING:  # its first weights
            unseen = data is not None or bool(job.regions)  # behind a region are clients of which nothing is known here
            federation = _unseen(build(job, _names(job, data)), job) if unseen else build(job)
        population: list[ClientId] = sorted(federation.data.clients)
        sites = sites_of(job, population)
        if guests is None:
            hub.open(run.id, sites, brief_of(values, population, signature), safe)
        say(f"waiting for {', '.join(sorted(set(sites.values())))}")
        accepted, cohort = (
            {(each.round, each.client, each.work) for each in safe},
            Cohort(run.folder / "cohort.json", run.journal),
        )
        terms = _terms(federation.policy, patience_s, None if guests else start_with, sites)
        members = Members(hub, run.id, sites)
        engine: Callable[..., Engine] = Deployed(hub, run.id, accepted, cohort, terms, members, absence, look)
        return dataclasses.replace(federation, engine=engine, engine_options={})

    try:
        outcome = None
        while outcome is None:
            with contextlib.suppress(Grown):
                outcome = carry_out(job, run, sinks, say, between, made)
    except Exception as error:  # not who was told to stop: that one goes on, and its sites wait
        if isinstance(error, RoundError):
            run.journal.forgive()
        hub.fail(run.id, "a round could not be closed" if isinstance(error, RoundError) else "an error, which it has told of")
        raise
    _committed(hub, run.id, say, wait, patience_s)
    hub.close(run.id)
    return outcome


def _committed(hub: Hub, job: str, say: Callable[[str], None], wait: Callable[[], None], patience_s: float) -> None:
    """Until all sites have committed the memory that belongs to their last answers, which nobody would tell them of later."""
    began_s, told = time.monotonic(), False
    while (late := hub.unconfirmed(job)) and (waited_s := time.monotonic() - began_s) < patience_s:
        if waited_s > _USUAL_S and not told:
            say(f"waiting for {', '.join(sorted(late))} to keep what its clients remember")
            told = True
        wait()
        hub.wait(job, 0.1)


def _guests(
    hub: Hub,
    job: Job,
    run: Run,
    brief: Callable[[Iterable[str]], bytes],
    safe: list[Update],
    data: Document | Literal["none"] | None,
) -> Guests | None:
    """Of a job that is open."""
    if not job.open:
        return None
    if data is None:
        raise ConfigError('sites = "open": the job\'s own data says who the clients are; serve it with --data')
    check_counts(job, 'sites = "open" lets more come in')
    return Guests(hub, run, brief, safe)


def _asked(job: Job) -> int:
    """How many clients the job's policy needs to be there."""
    policy: Policy = make("policy", job.policy)
    return max(policy.close_after or 1, 1 if policy.refill else policy.in_flight or 1)


def _terms(policy: Policy, patience_s: float, start_with: int | None, sites: Mapping[ClientId, str]) -> Terms:
    """Who is waited for: by a policy that hears the quick ones, only as many as it asks."""
    if start_with is not None and start_with > len(set(sites.values())):
        raise ConfigError(f"the job is to start with {start_with} sites, and has {len(set(sites.values()))}: start with fewer")
    return Terms(patience_s, policy.timeout_s, None if policy.exact else policy.in_flight, start_with)


def _safe(run: Run) -> Iterator[Update]:
    """The updates that the journal holds, without their tensors: a kill may have come before their acknowledgement."""
    for round in run.journal.rounds():
        for answer in run.journal.accepted(round):
            if isinstance(answer, Update):
                yield answer._replace(tree={})


def _names(job: Job, data: Document | Literal["none"] | None) -> Dataset:
    """The clients of [sites] without any examples, and what is held out here."""
    names = sorted(ClientId(client) for clients in job.seats.values() for client in clients)
    if not names:
        raise ConfigError("[sites] is missing: without the sites' data, the coordinator knows its clients from there alone")
    given = dataset_of(data) if isinstance(data, Document) else None if data else data_of(job)
    held = given or Dataset("data at the sites", {}, None)
    return held._replace(clients={name: {} for name in names})


def _unseen(federation: Federation, job: Job) -> Federation:
    """Every client may have examples of its own to be judged on, where the job judges so: only its site can say."""
    if not (job.evaluation.per_client or job.personalise):
        return federation
    splits = {"test": Unseen()}
    return dataclasses.replace(federation, data=federation.data._replace(clients=dict.fromkeys(federation.data.clients, splits)))


class Unseen:
    """Examples at a site: here, all that is known is that there may be some."""

    def __len__(self) -> int:
        return 1

    def take(self, index: Tensor) -> Batch:
        """They never leave their site."""
        raise DataError("a client's examples are at its site alone; a coordinator can't read them")


def refuse(job: Job) -> None:
    """Raise ConfigError for what can't be deployed."""
    if job.fleet is not None:
        raise ConfigError("[fleet] is virtual time, and sites work in real time: remove it, or run the job with `atoll run`")


def opened(store: Store, name: str, values: Mapping[str, Any], job: Job) -> Run:
    """The newest run of the same job that has not come to its end, or a new one: serving again goes on, with new sites too.

    Raises ConfigError where only [sites] has changed, and the run can't go on with them.
    """
    config = {**values, "name": name, "seed": job.seed}
    for row in store.list():
        if row.name != name or row.status == "finished":
            continue
        before = dict(store.record(row.id).config)
        if before == config:
            return store.open(row.id)
        if (
            isinstance(before.get("sites"), dict)
            and isinstance(config.get("sites"), dict)
            and {**before, "sites": config.get("sites")} == config
        ):
            check_growth(job, before["sites"], config["sites"])
            run = store.open(row.id)
            store.reconfigure(row.id, config)
            return run
    return store.create(name, config, job.seed, job.rounds)


def sweep(hub: Hub, store: Store) -> None:
    """Free what is spooled for runs that have come to their end, or are gone; sites that keep something of them are told."""
    rows = store.list()
    going = {spelled(row.id) for row in rows if row.status != "finished"}
    for row in rows:
        if row.status == "finished":
            hub.close(row.id)
    for left in (hub.folder / "jobs").glob("*"):
        if left.name not in going:
            shutil.rmtree(left, ignore_errors=True)
