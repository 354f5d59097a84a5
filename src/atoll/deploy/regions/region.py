"""A region: whose clients a relay asks, and how the mean of their answers is spoken upward as the answer of one client.

What comes from above goes to the region's clients as it is, each with a seed of its own: `rng.seed` of the assignment's seed,
the round, the work and the client's name. Their answers are decoded, averaged by the weights that the algorithm counts by, and
encoded again as a client's update is, so that the coordinator judges and decodes a region's answer as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.errors import ConfigError, JobError, TreeError
from atoll.job.schema import Section
from atoll.job.sentences import told
from atoll.job.text import parse, read
from atoll.policy import Policy
from atoll.rng import seeded
from atoll.transforms.chain import chain
from atoll.transforms.pipe import pipe
from atoll.transforms.regions import CLIENTS, MARK, UNIFORM
from atoll.types import Algorithm, Assignment, ClientId, Local, Payload, Reduced, Request, Seen, Transform, Tree, Update

FORMAT = 1  # the number after `region =`
ENCODED = "train"  # the work whose answers a job's transforms encode, as in `transforms.pipe`


class Region(NamedTuple):
    """Who is in a region, and when its answer is complete."""

    sites: Mapping[ClientId, str]  # its clients, and the site that speaks for each
    policy: Policy
    patience_s: float  # for clients that are not there


class Written(Section):
    """A region's file."""

    region: int
    min_updates: int = Field(2, ge=1)  # clients whose mean may leave; fewer are a failure of the region
    patience_s: float = Field(300.0, ge=0)
    deadline_s: float = Field(3600.0, gt=0)  # from when the region is asked; then it answers with those that have
    sites: dict[str, list[str]]


def load_region(path: str | Path) -> Region:
    """The region in a file. Raises ConfigError where it can't be read, JobError with all its problems."""
    return read_region(read(path, "region file"), Path(path).name)


def read_region(text: str, file: str = "region.toml") -> Region:
    """The region in a text. Raises as `load_region`.

    >>> region = read_region('region = 1\\n[sites]\\ncharite = ["charite"]\\nmainz = ["mainz-1", "mainz-2"]')
    >>> sorted(region.sites), region.policy.min_updates
    (['charite', 'mainz-1', 'mainz-2'], 2)
    >>> read_region('region = 1\\n[sites]\\ncharite = ["charite"]')
    Traceback (most recent call last):
    atoll.errors.JobError: region.toml:2: [sites] has 1 client, and min_updates is 2: a mean of fewer hides nobody; add clients
    """
    document = parse(text, file)
    try:
        found = Written.model_validate(dict(document.values))
    except ValidationError as error:
        problems = [told(document.values, Written, detail, f"region = {FORMAT}") for detail in error.errors()]
        raise JobError(f"{document.place(spot)}: {problem}" for spot, problem in problems) from None
    if found.region != FORMAT:
        raise JobError([f"{document.place(('region',))}: region = {found.region}: must be {FORMAT}, the format of this file"])
    sites: dict[ClientId, str] = {}
    for site, clients in found.sites.items():
        for client in map(ClientId, clients):
            if client in sites:
                twice = f"[sites] gives {client!r} to {sites[client]!r} and to {site!r}; a client is at one site"
                raise JobError([f"{document.place(('sites', site))}: {twice}"])
            sites[client] = site
    if len(sites) < found.min_updates:
        few = f"[sites] has {len(sites)} client{'s' * (len(sites) != 1)}, and min_updates is {found.min_updates}"
        raise JobError([f"{document.place(('sites',))}: {few}: a mean of fewer hides nobody; add clients"])
    policy = Policy(min_updates=found.min_updates, timeout_s=found.deadline_s, lease_s=found.deadline_s)
    return Region(sites, policy, found.patience_s)


def refuse(links: Sequence[Transform[Any]]) -> None:
    """Raise ConfigError for a transform that is undone in part of each update and in part of their sum."""
    for link in links:
        if link.form is not None and link.decode is not None:
            raise ConfigError(f"a relay can't encode a mean by {link.name!r} anew, which has a part that is undone of sums alone")


def asked(assignment: Assignment, clients: Sequence[ClientId], links: Sequence[Transform[Any]], like: Tree | None) -> Request:
    """What the region's clients are asked, for what the region is asked.

    `like`: what the algorithm expects of an update, where that is known. Raises TreeError where the assignment does not say
    how clients count, as only one for a region does.
    """
    uniform = assignment.tree.get(MARK + UNIFORM)
    if uniform is None or uniform.numel() != 1:
        raise TreeError(f"the coordinator takes {assignment.client!r} for one client; name it under [regions] of the job")
    sent, reduce = tree.drop(assignment.tree, MARK), mean("uniform" if bool(uniform) else "examples")
    request = Request(assignment.work, clients, lambda _: sent, reduce, like=like)
    if assignment.work != ENCODED or not links:
        return request
    codec = chain("region", links)
    form = codec.form(like) if codec.form is not None and like is not None else like
    undo = codec.decode
    return request._replace(like=form, decode=None if undo is None else lambda update: undo(update, like))


def spoken(
    assignment: Assignment, reduced: Reduced, links: Sequence[Transform[Any]], memory: Tree, payload: Payload = "update"
) -> tuple[Update, Tree]:
    """The region's answer, and its new memory: what one client would send that had trained to the mean.

    `memory`: of the region's own encoders, as a client's. `payload`: what the algorithm's clients send.
    """
    metrics = {**reduced.metrics, CLIENTS: float(reduced.heads)}
    update = Update(assignment.round, assignment.client, assignment.work, reduced.tree, reduced.weight, metrics)
    encoders = onward(links) if assignment.work == ENCODED else []
    if not encoders:
        return update, {}
    fold: Local[None] = Local(lambda a, m: None, lambda c, b: c, lambda a, c, seen: (update, {}), payload=payload)
    nobody: Any = None  # only what clients do is used of it
    worn = pipe(Algorithm(nobody, nobody, nobody, {ENCODED: fold}), *encoders).local[ENCODED]
    bare = assignment._replace(tree=tree.drop(assignment.tree, MARK))
    with seeded(assignment.seed):
        return worn.final(bare, worn.init(bare, memory), Seen(0, 0))


def onward(links: Sequence[Transform[Any]]) -> list[Transform[Any]]:
    """The links that encode a region's mean: not those whose sum is undone above, nor those before, nor a bound on a norm.

    What bounds each client's norm bounds that of their mean.

    >>> from atoll.transforms.clip import clip
    >>> from atoll.transforms.compress.cast import cast
    >>> from atoll.transforms.compress.random_k import random_k
    >>> [link.name for link in onward([clip(1.0), random_k(0.1), cast("bf16")])]
    ['cast']
    """
    summed = [at for at, link in enumerate(links) if link.form is not None]
    return [link for link in links[max(summed, default=-1) + 1 :] if not link.properties.bounds_norm]
