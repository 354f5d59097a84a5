"""The coordinator: each of its jobs is the ordinary federation over the remote engine, in a thread, kept in an ordinary run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from atoll.deploy.brief import brief_of, sites_of
from atoll.deploy.cohort import Cohort
from atoll.engines.remote import DRAWING, Place, Remote
from atoll.errors import ConfigError, DataError
from atoll.interfaces import Engine, Memories, Sink
from atoll.job.build import build, dataset_of
from atoll.job.execution import Outcome, carry_out
from atoll.job.text import Document
from atoll.types import Batch, ClientId, Dataset, Local, Tree, Update

if TYPE_CHECKING:
    from torch import Tensor

    from atoll.engines.serial import Clients
    from atoll.federation import Federation
    from atoll.job.schema import Job
    from atoll.remote.hub import Hub
    from atoll.store.run import Run
    from atoll.store.runs import Store


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A factory of the engine of one deployed run."""

    hub: Hub
    run: str
    accepted: set[Place]
    cohort: Cohort
    patience_s: float
    wait: Callable[[], None]

    def __call__(self, locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories) -> Engine:
        """As `Federation` makes an engine."""
        return Remote(self.hub, self.run, self.accepted, self.cohort, locals_, clients, memories, self.patience_s, self.wait)

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
) -> Outcome:
    """Train what the job describes with the sites that come for it, going on from the run's last checkpoint.

    `values`: what the job file says, which the sites are told. `wait` is called while nothing happens; an exception from it,
    from `each_round` or from a sink stops the job here, and a later call goes on. `patience_s`: for sites that are not there.
    `data`: whose held-out examples judge the model, in the place of the job's own data; "none": nothing is held out here.
    Then [sites] says who the clients are, and no client's data is read at the coordinator.

    Raises:
        AtollError: as `carry_out`; ConfigError also where [sites] does not fit, or the job is one for virtual time.
    """
    refuse(job)

    def make(job: Job) -> Federation:
        with DRAWING:  # its first weights
            federation = build(job) if data is None else _unseen(build(job, _names(job, data)), job)
        population: list[ClientId] = sorted(federation.data.clients)
        sites, safe = sites_of(job, population), list(_safe(run))
        hub.open(run.id, sites, brief_of(values, population), safe)
        say(f"waiting for {', '.join(sorted(set(sites.values())))}")
        accepted, cohort = (
            {(each.round, each.client, each.work) for each in safe},
            Cohort(run.folder / "cohort.json", run.journal),
        )
        engine: Callable[..., Engine] = Deployed(hub, run.id, accepted, cohort, patience_s, wait)
        return dataclasses.replace(federation, engine=engine, engine_options={})

    outcome = carry_out(job, run, sinks, say, each_round, make)
    hub.close(run.id)
    return outcome


def _safe(run: Run) -> Iterator[Update]:
    """The updates that the journal holds, without their tensors: a kill may have come before their acknowledgement."""
    for round in run.journal.rounds():
        for answer in run.journal.accepted(round):
            if isinstance(answer, Update):
                yield answer._replace(tree={})


def _names(job: Job, data: Document | Literal["none"]) -> Dataset:
    """The clients of [sites] without any examples, and what is held out here."""
    names = sorted(ClientId(client) for clients in job.sites.values() for client in clients)
    if not names:
        raise ConfigError("[sites] is missing: without the sites' data, the coordinator knows its clients from there alone")
    held = dataset_of(data) if isinstance(data, Document) else Dataset("data at the sites", {}, None)
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
    """The newest run of the same job that has not come to its end, or a new one: serving again goes on."""
    config = {**values, "name": name, "seed": job.seed}
    for row in store.list():
        if row.name == name and row.status != "finished" and store.record(row.id).config == config:
            return store.open(row.id)
    return store.create(name, config, job.seed, job.rounds)
