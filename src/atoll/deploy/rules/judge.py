"""A job against a site's policy: every reason to refuse it, before any of its work is done."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from atoll import catalog
from atoll.data.columns import only
from atoll.deploy.rules.policy import Required, SitePolicy, is_open
from atoll.deploy.rules.signatures import signed_by
from atoll.job.schema import Job, Named

MIB, GIB = 1 << 20, 1 << 30
_FILES = ("path", "folder", "file", "source")
_COLUMNS = ("label", "by", "features", "text", "target_text", "image")  # parameters of data sets that name columns


class Refusal(NamedTuple):
    """Why not: the rule of the policy, and a sentence with the value, the rule and the mend."""

    rule: str  # "[jobs] algorithms"
    text: str
    for_now: bool = False  # the same job may be judged otherwise later: its hours have come, another job has ended

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass(frozen=True)
class Offer:
    """A job as it was offered to the site: what is judged, and what consent is given to."""

    job: Job
    values: Mapping[str, Any]  # what the job file says, from which `job` was checked
    run: str = ""  # what the coordinator calls this run of it
    bundle: bytes = b""  # the user's own code that comes with it
    signature: bytes = b""  # Ed25519, over both: `signatures.statement`
    sender: str = ""  # who offers it
    data: Named | None = None  # the site's own, which is read in the place of the job's

    @property
    def title(self) -> str:
        """Its name."""
        return self.job.name or self.run

    @property
    def text(self) -> str:
        """The one text of what the job file says: the same whatever its comments, spaces and order."""
        return text_of(self.values)

    @property
    def digest(self) -> str:
        """SHA-256 of the job's text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def bundle_digest(self) -> str:
        """SHA-256 of the code; empty where there is none."""
        return hashlib.sha256(self.bundle).hexdigest() if self.bundle else ""

    @property
    def brings_code(self) -> bool:
        """Code that is not of this installation would run."""
        return bool(self.bundle) or any(each and each.name == "script" for each in (self.job.local, self.job.personalise))


@dataclass(frozen=True)
class Usage:
    """What has been used so far, as the site itself counts it, and what the job would be given."""

    round_bytes: int = 0  # that left for this job in this round
    job_bytes: int = 0  # in all
    epsilon: float = 0.0  # that the other jobs of this site have declared, added up
    delta: float = 0.0
    jobs: int = 0  # others under way
    threads: int = 1
    memory_bytes: int = 0  # that the site's process has taken at most
    now: datetime | None = None  # by the site's clock; None: the hours are not judged


def text_of(values: Mapping[str, Any]) -> str:
    """What a job file says as JSON, keys in order, without spaces: what is hashed, signed and consented to.

    >>> text_of({"rounds": 2, "atoll": 1})
    '{"atoll":1,"rounds":2}'
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def judge(policy: SitePolicy, offer: Offer, usage: Usage = Usage()) -> list[Refusal]:
    """Every rule of the policy that the job breaks; empty where it may begin, or go on, as far as consent is given.

    >>> from atoll.deploy.rules.policy import read_policy
    >>> from atoll.job.check import check
    >>> from atoll.job.templates import named
    >>> from atoll.job.text import parse
    >>> document = parse(named("hospitals", "hearts"))
    >>> policy = read_policy('site_policy = 1\\n[jobs]\\nalgorithms = ["fedavg"]\\n')
    >>> print(*judge(policy, Offer(check(document), document.values)))
    [jobs] algorithms: the job's algorithm is 'scaffold'; this site allows fedavg: use one of these, or ask the site to allow it
    """
    found = [_jobs, _transforms, _data, _privacy, _resources, _code]
    return [refusal for each in found for refusal in each(policy, offer, usage)]


def _among(rule: str, what: str, value: str, allowed: Iterable[str] | None) -> Iterator[Refusal]:
    if allowed is not None and value not in allowed:
        shown = ", ".join(allowed) or "none"
        told = f"the job's {what} is {value!r}; this site allows {shown}: use one of these, or ask the site to allow it"
        yield Refusal(rule, told)


def _jobs(policy: SitePolicy, offer: Offer, _: Usage) -> Iterator[Refusal]:
    rules, job, name = policy.jobs, offer.job, offer.title
    if rules.names is not None and not any(fnmatchcase(name, pattern) for pattern in rules.names):
        told = f"a job called {name!r}; this site takes part in {', '.join(rules.names)}: name it so, or ask the site to allow it"
        yield Refusal("[jobs] names", told)
    if rules.sha256 is not None and offer.digest not in rules.sha256:
        told = f"the job's text has the SHA-256 {offer.digest}, which is not among those of this site; ask the site to add it"
        yield Refusal("[jobs] sha256", told)
    yield from _among("[jobs] algorithms", "algorithm", job.algorithm.name, rules.algorithms)
    for each in (job.local, job.personalise):
        if each is not None:
            yield from _among("[jobs] locals", "local work", each.name, rules.locals)
    if rules.rounds is not None and job.rounds > rules.rounds:
        yield Refusal("[jobs] rounds", f"rounds = {job.rounds}; this site allows {rules.rounds}: ask for fewer")


def _transforms(policy: SitePolicy, offer: Offer, _: Usage) -> Iterator[Refusal]:
    rules, job = policy.jobs, offer.job
    chosen = list(_nested(job.transforms))
    for each in [*chosen, *_nested([job.broadcast] if job.broadcast else [])]:
        yield from _among("[jobs] transforms", "transform", each.name, rules.transforms)
    if rules.transforms is not None and job.compress is not None:
        told = "the job leaves its codecs to `compress`; this site allows some only: write them as [[transforms]] instead"
        yield Refusal("[jobs] transforms", told)
    for required in rules.require_transforms:
        same = [each for each in chosen if each.name == required.name]
        if not same:
            told = f"the job has no {required.name!r} among its transforms, which this site requires: add it as [[transforms]]"
            yield Refusal("[jobs] require_transforms", told)
        for each in same:
            yield from _bounds(required, each)


def _nested(transforms: Iterable[Named | str | Mapping[str, Any]]) -> Iterator[Named]:
    """Transforms, and those that they are made of, such as the codecs within `feedback`."""
    for given in transforms:
        each = given if isinstance(given, Named) else Named.of(given if isinstance(given, str) else dict(given))
        yield each
        for parameter in catalog.find("transform", each.name).parameters:
            value = each.parameters.get(parameter.name)
            if "Transform" in parameter.annotation and value is not None:
                yield from _nested(value if isinstance(value, list) else [value])


def _bounds(required: Required, given: Named) -> Iterator[Refusal]:
    """The parameters of a required transform, those that the job leaves to their defaults included."""
    entry = catalog.find("transform", required.name)
    for limits, sign, word in ((required.most, 1, "most"), (required.least, -1, "least")):
        for key, limit in limits.items():
            parameter = entry.parameter(key)
            value = given.parameters.get(key, parameter.default if parameter else None)
            if not isinstance(value, int | float) or not sign * value <= sign * limit:  # not a number is refused
                told = f"{required.name} has {key} = {value}; this site asks for {limit:g} at {word}: set {key} = {limit:g}"
                yield Refusal("[jobs] require_transforms", told)


def _data(policy: SitePolicy, offer: Offer, _: Usage) -> Iterator[Refusal]:
    rules, given = policy.data, offer.data or offer.job.data
    yield from _among("[data] names", "data set", given.name, rules.names)
    files = [(key, value) for key, value in given.parameters.items() if key in _FILES and isinstance(value, str)]
    for key, value in files:
        if rules.folders is not None and not any(_beneath(value, folder) for folder in rules.folders):
            told = f"it reads {key} = {value!r}; this site allows what lies in {', '.join(rules.folders)}: read from there"
            yield Refusal("[data] folders", told)
    if rules.columns is None and not rules.deny_columns:
        return
    named = {key: given.parameters.get(key) for key in _COLUMNS}
    listed = [x for value in named.values() for x in (value if isinstance(value, list) else [value]) if isinstance(x, str)]
    yield from refused_columns(policy, [*_always(given), *listed])
    if files and named["features"] is None and named["text"] is None and named["image"] is None:
        told = f"{given.name} would read every column of {files[0][1]!r}; this site allows some only: name them as `features`"
        yield Refusal("[data] columns", told)


def _always(given: Named) -> Iterable[str]:
    """The columns that a data set reads whatever the job says: COLUMNS of its module."""
    made = catalog.find("dataset", given.name).load()
    found: Iterable[str] = getattr(sys.modules.get(made.__module__), "COLUMNS", ())
    return found


def refused_columns(policy: SitePolicy, columns: Iterable[str]) -> list[Refusal]:
    """The columns that may not be read, for what a job names, and again where a table is read (`data.columns`).

    >>> from atoll.deploy.rules.policy import read_policy
    >>> policy = read_policy('site_policy = 1\\n[data]\\ndeny_columns = ["name*"]\\n')
    >>> print(*refused_columns(policy, ["age", "name_first"]))
    [data] deny_columns: the column 'name_first' may not be read, by 'name*'; leave it out of the job's `features`
    """
    rules, found = policy.data, []
    for column in columns:
        denied = next((pattern for pattern in rules.deny_columns if fnmatchcase(column, pattern)), None)
        if denied is not None:
            told = f"the column {column!r} may not be read, by {denied!r}; leave it out of the job's `features`"
            found.append(Refusal("[data] deny_columns", told))
        elif rules.columns is not None and not any(fnmatchcase(column, pattern) for pattern in rules.columns):
            told = f"the column {column!r} is not among {', '.join(rules.columns)}; leave it out of the job's `features`"
            found.append(Refusal("[data] columns", told))
    return found


def reading(policy: SitePolicy | None) -> AbstractContextManager[None]:
    """Until the block ends, what is read in this thread keeps to the policy's columns; None: to nothing."""
    return nullcontext() if policy is None else only(lambda columns: refused_columns(policy, columns))


def _beneath(path: str, folder: str) -> bool:
    """Links are followed: what counts is where a file truly lies."""
    within, top = (os.path.realpath(os.path.expanduser(each)) for each in (path, folder))
    return os.path.commonpath([within, top]) == top


def _privacy(policy: SitePolicy, offer: Offer, usage: Usage) -> Iterator[Refusal]:
    rules, declared = policy.privacy, offer.job.privacy
    if declared is None:
        if rules.required:
            told = "the job declares no privacy budget, which this site requires: add [privacy] with epsilon and delta"
            yield Refusal("[privacy] required", told)
        return
    for key, spent in (("epsilon", usage.epsilon), ("delta", usage.delta)):
        asked, once, in_all = getattr(declared, key), getattr(rules, key), getattr(rules, f"{key}_in_all")
        if once is not None and asked > once:
            told = f"the job declares {key} = {asked:g}; this site allows {once:g} a job: ask for less"
            yield Refusal(f"[privacy] {key}", told)
        if in_all is not None and spent + asked > in_all:
            told = f"the job declares {key} = {asked:g}, and {spent:g} of the {in_all:g} of this site are spent: ask for less"
            yield Refusal(f"[privacy] {key}_in_all", told)


def _resources(policy: SitePolicy, offer: Offer, usage: Usage) -> Iterator[Refusal]:
    rules = policy.resources
    if rules.threads is not None and usage.threads > rules.threads:
        told = f"{usage.threads} threads would compute it; the policy gives {rules.threads}: start the site with fewer"
        yield Refusal("[resources] threads", told)
    if rules.memory_gib is not None and usage.memory_bytes > rules.memory_gib * GIB:
        told = f"the site has taken {usage.memory_bytes / GIB:.1f} GiB; the policy gives {rules.memory_gib:g}: start it anew"
        yield Refusal("[resources] memory_gib", told)
    if rules.jobs is not None and usage.jobs >= rules.jobs:
        told = f"{usage.jobs} other jobs are under way; this site takes {rules.jobs} at once: wait until one ends"
        yield Refusal("[resources] jobs", told, for_now=True)
    if usage.now is not None and not is_open(rules.hours, usage.now.time()):
        told = f"it is {usage.now:%H:%M} here; this site computes at {rules.hours}: it goes on then by itself"
        yield Refusal("[resources] hours", told, for_now=True)


def _code(policy: SitePolicy, offer: Offer, _: Usage) -> Iterator[Refusal]:
    rules = policy.code
    if not (offer.brings_code or rules.signed_jobs):
        return
    why = "the job brings code of its own" if offer.brings_code else "this site takes signed jobs only"
    rule = "[code] keys" if offer.brings_code else "[code] signed_jobs"
    if not offer.signature:
        yield Refusal(rule, f"{why}, and is not signed: sign it with a key that the site trusts")
    elif signed_by(rules.keys, offer.text, offer.bundle, offer.signature) is None:
        told = f"{why}, and its signature is of none of the {len(rules.keys)} keys that the site trusts, or of another text"
        yield Refusal(rule, f"{told}: sign what is sent, or ask the site to trust the key")
