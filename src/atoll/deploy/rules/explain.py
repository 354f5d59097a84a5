"""A site policy in plain sentences, what it does not limit included."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.deploy.rules.policy import Required, SitePolicy


def sentences(policy: SitePolicy) -> Iterator[str]:
    """What the policy means, a sentence a rule.

    >>> from atoll.deploy.rules.policy import read_policy
    >>> next(sentences(read_policy("site_policy = 1")))
    'A person at the site approves each job before it begins.'
    """
    if policy.approval == "manual":
        yield "A person at the site approves each job before it begins."
    else:
        yield "A job that keeps to the rules below begins without anybody being asked."
    yield from _jobs(policy)
    yield from _data(policy)
    yield from _leaves(policy)
    yield from _privacy(policy)
    yield from _resources(policy)
    keys = len(policy.code.keys)
    who = f"by one of {keys} keys" if keys else "by a key, and none is trusted yet, so that none runs"
    yield f"Code that a job brings runs only if it is signed {who}."
    if policy.code.signed_jobs:
        yield "Every job must be signed."


def _list(names: list[str]) -> str:
    return ", ".join(names) if names else "none at all"


def _jobs(policy: SitePolicy) -> Iterator[str]:
    rules = policy.jobs
    yield f"Jobs: those called {_list(rules.names)}." if rules.names is not None else "Jobs: of any name."
    if rules.sha256 is not None:
        yield f"Jobs: only {len(rules.sha256)} texts, by their SHA-256."
    yield f"Algorithms: {_list(rules.algorithms)}." if rules.algorithms is not None else "Algorithms: any."
    if rules.locals is not None:
        yield f"Local work: {_list(rules.locals)}."
    if rules.transforms is not None:
        yield f"Transforms: {_list(rules.transforms)}."
    for each in rules.require_transforms:
        yield f"Every job must have the transform {_bounded(each)}."
    if rules.rounds is not None:
        yield f"A job may have {rules.rounds} rounds at most."


def _bounded(required: Required) -> str:
    most = [f"{key} at most {limit:g}" for key, limit in required.most.items()]
    least = [f"{key} at least {limit:g}" for key, limit in required.least.items()]
    return required.name + (f" with {', '.join(most + least)}" if most or least else "")


def _data(policy: SitePolicy) -> Iterator[str]:
    rules = policy.data
    yield f"Data sets: {_list(rules.names)}." if rules.names is not None else "Data sets: any that the site can read."
    if rules.folders is not None:
        yield f"Files are read from {_list(rules.folders)}, and from nowhere else."
    if rules.columns is not None:
        yield f"Columns that may be read: {_list(rules.columns)}."
    if rules.deny_columns:
        yield f"Columns that may never be read: {_list(rules.deny_columns)}."


def _leaves(policy: SitePolicy) -> Iterator[str]:
    rules = policy.leaves
    yield "What leaves: the tensors that the job's algorithm declares, by name and shape, and no others."
    yield f"Kinds of work: {_list(rules.work)}." if rules.work is not None else "Kinds of work: any that the job has."
    yield f"Metrics: {_list(rules.metrics)}." if rules.metrics is not None else "Metrics: any that the job computes."
    if rules.round_mib is not None:
        yield f"At most {rules.round_mib:g} MiB leave in a round of a job."
    if rules.job_mib is not None:
        yield f"At most {rules.job_mib:g} MiB leave in a job."
    if rules.round_mib is None and rules.job_mib is None:
        yield "Any number of bytes may leave."
    yield f"The number of examples behind an update {'is told' if rules.example_counts else 'is not told'}."
    yield f"The words of errors {'leave' if rules.reasons else 'stay at the site'}."
    yield f"The log of a job {'leaves' if rules.logs else 'stays at the site'}."


def _privacy(policy: SitePolicy) -> Iterator[str]:
    rules = policy.privacy
    if rules.required:
        yield "Every job must declare a privacy budget; that is its word, which nothing here computes."
    for key in ("epsilon", "delta"):
        once, in_all = getattr(rules, key), getattr(rules, f"{key}_in_all")
        if once is not None:
            yield f"A job may declare {key} = {once:g} at most."
        if in_all is not None:
            yield f"All jobs together may declare {key} = {in_all:g} at most."


def _resources(policy: SitePolicy) -> Iterator[str]:
    rules = policy.resources
    if rules.threads is not None:
        yield f"A job computes with {rules.threads} threads at most."
    if rules.memory_gib is not None:
        yield f"No work is begun once the site's process has taken more than {rules.memory_gib:g} GiB."
    if rules.hours is not None:
        yield f"Jobs compute at {rules.hours} by the site's clock."
    if rules.jobs is not None:
        yield f"At most {rules.jobs} jobs at once."
