"""What no section of a job can know alone: whether the parts go together, as far as names and numbers tell it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from atoll import catalog
from atoll.errors import AtollError, ConfigError
from atoll.job import compress, values
from atoll.job.schema import Job, Named
from atoll.job.text import Spot
from atoll.selection.rule import cohort, refuse
from atoll.transforms.compose import Link, broadcast_clash, clashes


class Problem(NamedTuple):
    """What is wrong, and where."""

    spot: Spot
    text: str


def together(job: Job) -> Iterator[Problem]:
    """What no section can know alone; only asked once each is right by itself."""
    algorithm = catalog.find("algorithm", job.algorithm.name)
    needs_local = algorithm.parameter("local") is not None
    if needs_local and job.local is None:
        yield Problem((), f"[local] is missing: {algorithm.name} needs the clients' work, a name from `atoll catalog local`")
    if not needs_local and job.local is not None:
        yield Problem(("local",), f"[local] does not go with {algorithm.name}, which says itself what its clients do: remove it")
    if "plain_sgd" in algorithm.said and job.local is not None:
        given = f"{job.local.name} with momentum" if job.local.parameters.get("momentum") else job.local.name
        if given != "sgd":
            told = f"[local] {given}: {algorithm.name} is defined for plain SGD at the client; use sgd with momentum 0"
            yield Problem(("local",), told)
    if job.samples is not None and job.task.name != "causal_lm":
        yield Problem(("samples",), f"[samples] needs the task causal_lm: {job.task.name} continues no text")
    clients = clients_of(job)
    yield from _policy(job, clients)
    yield from _selection(job, clients)
    yield from _fleet(job)
    yield from _transforms(job)
    yield from (Problem(spot, told) for spot, told in compress.problems(job))
    yield from _broadcast(job)
    yield from _regions(job)
    yield from _fits(job)
    if job.engine.name == "ray" and absent("ray"):
        yield Problem(("engine", "name"), "[engine] ray needs the package 'ray': pip install 'atoll[ray]'")
    for package, asked_for in (("tensorboard", job.sinks.tensorboard), ("mlflow", job.sinks.mlflow)):
        if asked_for is not None and absent(package):
            yield Problem(("sinks", package), f"[sinks.{package}] needs the package {package!r}: pip install 'atoll[{package}]'")


def _policy(job: Job, clients: int | None) -> Iterator[Problem]:
    """The policy's own rules, and whether there are as many clients as it asks."""
    for key in ("clients_per_round", "clients_in_flight"):
        asked = job.policy.parameters.get(key)
        if clients is not None and isinstance(asked, int) and asked > clients:
            yield Problem(("policy", key), f"[policy] {key} = {asked}: there are only {clients} clients; ask {clients} or fewer")
            return
    try:
        policy = catalog.find("policy", job.policy.name).load()(**job.policy.parameters)  # imports nothing heavy
    except ConfigError as error:
        yield Problem(("policy",), f"[policy] {error}")
        return
    if clients is not None and not policy.refill and (policy.in_flight or 0) > clients:
        told = f"[policy] {job.policy.name} asks {policy.in_flight} clients at once, but there are only {clients}; ask fewer"
        yield Problem(("policy",), told)


def _selection(job: Job, clients: int | None) -> Iterator[Problem]:
    """The rule's own rules, and whether it goes with the policy; that it goes with the algorithm, the federation says."""
    if job.selection is None:
        return
    entry, given = catalog.find("selection", job.selection.name), job.selection.parameters
    try:
        policy = catalog.find("policy", job.policy.name).load()(**job.policy.parameters)
    except ConfigError:
        return  # said above
    try:
        refuse(entry.name, "unbiased" in entry.said, policy)
        if entry.parameter("task") is None:
            entry.load()(**given)  # imports nothing heavy
    except ConfigError as error:
        yield Problem(("selection",), f"[selection] {error}")
    asked, d = cohort(policy, clients) if clients else policy.in_flight, given.get("d")
    if asked and isinstance(d, int) and d < asked:
        yield Problem(("selection", "d"), f"[selection] d = {d}: must be {asked} or more, the clients of a round")


def _fleet(job: Job) -> Iterator[Problem]:
    """The fleet's own rules, and those of its file."""
    if job.fleet is None:
        return
    from atoll.job.build import make  # which checks a job before it builds one

    try:
        make("fleet", job.fleet, seed=job.seed)  # imports NumPy, but not torch
    except AtollError as error:
        told = str(error)
        yield Problem(("fleet",), told if told.startswith("[") else f"[fleet] {told}")


def _transforms(job: Job) -> Iterator[Problem]:
    """What `pipe` refuses, by what the factories say of themselves in their source."""
    placed = list(links_of(job))
    entries = [catalog.find("transform", each.name) for _, each in placed]
    algorithm = catalog.find("algorithm", job.algorithm.name)
    scalars = algorithm.traffic.get("train", {}).get("up") == 0
    payload = "scalars" if scalars else "composite" if "composite" in algorithm.said else "update"
    for clash in clashes([Link(entry.name, entry.said) for entry in entries], payload=payload):
        spot = placed[clash.at][0]
        yield Problem((*spot, "name"), f"[[transforms]] number {int(spot[1]) + 1}: {clash.text}")


def _broadcast(job: Job) -> Iterator[Problem]:
    """What `with_broadcast` refuses, by what the factories say of themselves in their source."""
    if job.broadcast is None:
        return
    if catalog.find("algorithm", job.algorithm.name).traffic.get("train", {}).get("up") == 0:
        told = f"[broadcast] {job.algorithm.name} sends its clients a few scalars, which nothing makes smaller; leave it out"
        yield Problem(("broadcast",), told)
    for spot, each in within(job.broadcast, ("broadcast",)):
        if clash := broadcast_clash(Link(each.name, catalog.find("transform", each.name).said)):
            yield Problem((*spot, "name"), f"[broadcast] {clash}")


def _regions(job: Job) -> Iterator[Problem]:
    """What a region, of whose clients only the mean is heard, does not go with; that answers are means, the federation says."""
    if not job.regions:
        return
    sites = {client: site for site, clients in job.seats.items() for client in clients}
    for region in job.regions:
        if region not in sites:
            told = f'[regions] {region}: no site speaks for it; give it to its relay: [sites] RELAY = ["{region}"]'
            yield Problem(("regions", region), told)
        elif len(job.seats[sites[region]]) > 1:
            told = f"[regions] {region}: the site {sites[region]!r} speaks for more, and a relay has one region: give it one"
            yield Problem(("regions", region), told)
    only = "and of a region's clients only the mean is heard: leave out one of the two"
    if "by_client" in catalog.find("algorithm", job.algorithm.name).said:
        told = f"[regions] {job.algorithm.name} sends each client what it lacks, and a region's clients are all sent the same"
        yield Problem(("regions",), f"{told}: use an algorithm such as fedavg or scaffold")
    if job.broadcast is not None:
        yield Problem(("broadcast",), f"[broadcast] sends each client the steps that it lacks, {only}")
    if job.selection is not None:
        yield Problem(("selection",), f"[selection] {job.selection.name} chooses clients by what each of them tells, {only}")
    if job.evaluation.per_client:
        yield Problem(("evaluation", "per_client"), f"[evaluation] per_client judges clients one by one, {only}")
    if job.personalise is not None:
        yield Problem(("personalise",), f"[personalise] is judged client by client, {only}")


def links_of(job: Job) -> Iterator[tuple[Spot, Named]]:
    """All transforms of a job and where each stands; one that is made of others comes before those."""
    for i, each in enumerate(job.transforms):
        yield from within(each, ("transforms", i))


def within(given: Named, spot: Spot) -> Iterator[tuple[Spot, Named]]:
    """A transform and those that it is made of."""
    yield spot, given
    for parameter in catalog.find("transform", given.name).parameters:
        if values.kind_of_each(parameter.annotation) == "transform":
            for i, one in enumerate(given.parameters.get(parameter.name, [])):
                yield from within(Named.of(one), (*spot, parameter.name, i))


def _fits(job: Job) -> Iterator[Problem]:
    """A model from scratch beside what the catalog says of the data: `x float32 (n, 1, 28, 28)`, and the labels."""
    about = catalog.find("dataset", job.data.name).about
    shape = re.search(r"\bx float32 \(n((?:, \w+)+)\)", str(about.get("inputs", "")))
    given = job.task.parameters.get("model")
    if shape is None or given is None:
        return
    model = Named.of(given)
    sizes = [int(word) if word.isdigit() else None for word in shape[1].split(", ")[1:]]
    told = " x ".join(word for word in shape[1].split(", ")[1:])
    for key, wanted in _wanted(model.name, sizes):
        found = _of(model, key)
        if isinstance(found, int) and found != wanted:
            why = f"[task.model] {key} = {found}: must be {wanted}, since an example of {job.data.name} is {told}"
            yield Problem(("task", "model", key), why)
    labels, outputs = about.get("labels"), _of(model, "outputs")
    if job.task.name == "classification" and isinstance(labels, list) and isinstance(outputs, int) and outputs < len(labels):
        why = f"[task.model] outputs = {outputs}: must be {len(labels)} or more, the classes of {job.data.name}"
        yield Problem(("task", "model", "outputs"), why)


def _wanted(model: str, sizes: list[int | None]) -> Iterator[tuple[str, int]]:
    """The parameters of a model that an example's shape decides."""
    known = [size for size in sizes if size is not None]
    whole = len(known) == len(sizes)
    if whole and (model == "mlp" or (model == "linear" and len(known) == 1)):
        yield "inputs", math.prod(known)
    elif whole and model == "cnn" and len(known) == 3:
        yield "channels", known[0]
        yield "size", known[1]
    elif model == "lstm" and len(sizes) == 2 and sizes[1] is not None:
        yield "features", sizes[1]


def _of(named: Named, key: str) -> Any:
    """A parameter as the job sets it, or by default."""
    parameter = catalog.find("model", named.name).parameter(key)
    return named.parameters.get(key, parameter.default if parameter else None)


def clients_of(job: Job) -> int | None:
    """How many clients there will be, where it is known without reading the data."""
    given = job.data.parameters.get("clients")
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    entry = catalog.find("dataset", job.data.name)
    parameter = entry.parameter("clients")
    if parameter is not None and isinstance(parameter.default, int):
        return parameter.default
    told = re.match(r"\d+\b", str(entry.about.get("clients", "")))  # "4 hospitals: Cleveland 304, ..."
    return int(told[0]) if told and "partition" not in job.data.parameters else None


def absent(package: str) -> bool:
    """Not installed, whether it is named as it is imported (sklearn) or as it is installed (scikit-learn)."""
    if importlib.util.find_spec(package.partition(".")[0]) is not None:
        return False
    return not any(importlib.metadata.Distribution.discover(name=package))
