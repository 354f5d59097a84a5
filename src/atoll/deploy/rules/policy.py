"""Site policy: a TOML file at the site that says which jobs it takes part in, on what data, and what may leave.

Every key is a limit; what is not written is not limited, except that consent is asked of a person (`approval`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from atoll import catalog
from atoll.deploy.rules.signatures import refuse_key
from atoll.errors import ConfigError, JobError, UnknownName, VersionError
from atoll.job.schema import Section, spelled_out
from atoll.job.sentences import spelled, told
from atoll.job.text import Spot, parse, read

FORMAT = 1  # the number after `site_policy =`
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def _digest(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("must be a SHA-256, 64 digits of 0-9 and a-f, as `atoll site digest JOB` prints it")
    return value


def _key(value: str) -> str:
    try:
        refuse_key(value)
    except ConfigError:
        raise ValueError("must be an Ed25519 public key, its 32 bytes in base64") from None
    return value


def _hours(value: str) -> str:
    if not _HOURS.fullmatch(value):
        raise ValueError('must be two times of the day, such as "20:00-06:00"')
    return value


Digest = Annotated[str, AfterValidator(_digest)]
PublicKey = Annotated[str, AfterValidator(_key)]
Hours = Annotated[str, AfterValidator(_hours)]
Names = list[Annotated[str, Field(min_length=1)]]


class Required(Section):
    """A transform that every job must have, and within what bounds its parameters must be."""

    name: str
    most: dict[str, float] = Field({})
    least: dict[str, float] = Field({})


class Jobs(Section):
    """Which jobs."""

    names: Names | None = None  # patterns: * stands for any text
    sha256: list[Digest] | None = None  # of what the job says, as `atoll site digest` gives it
    algorithms: Names | None = None
    locals: Names | None = None
    transforms: Names | None = None  # allowed, `broadcast` included
    require_transforms: list[Annotated[Required, BeforeValidator(spelled_out)]] = Field([])
    rounds: int | None = Field(None, ge=1)  # at most


class Data(Section):
    """Which data."""

    names: Names | None = None  # of data sets, as in `[data] name` of a job
    folders: Names | None = None  # that files are read from, and what lies beneath
    columns: Names | None = None  # patterns of the columns that may be read
    deny_columns: Names = Field([])  # patterns of those that may not, whatever `columns` says


class Leaves(Section):
    """What may leave."""

    work: Names | None = None  # kinds of work, such as "train"
    metrics: Names | None = None  # names of numbers beside the tensors
    round_mib: float | None = Field(None, gt=0)  # of a run of a job in one round
    job_mib: float | None = Field(None, gt=0)  # of a run of a job in all
    example_counts: bool = True  # an update says how many examples it was made from
    reasons: bool = False  # a failure's own words, in which data may be quoted
    logs: bool = False  # the site's log of the job


class Privacy(Section):
    """How much of the privacy budget a job may declare; both numbers are declarations, which nothing computes yet."""

    required: bool = False  # a job that declares nothing is refused
    epsilon: float | None = Field(None, gt=0)  # of one job, at most
    delta: float | None = Field(None, ge=0, lt=1)
    epsilon_in_all: float | None = Field(None, gt=0)  # of all runs that the site has taken part in, added up
    delta_in_all: float | None = Field(None, ge=0, lt=1)


class Resources(Section):
    """What a job may use of the machine."""

    threads: int | None = Field(None, ge=1)
    memory_gib: float | None = Field(None, gt=0)  # that the process may have taken when work is begun
    hours: Hours | None = None  # of the site's clock; from and to, over midnight too
    jobs: int | None = Field(None, ge=1)  # at once


class Code(Section):
    """Whose code runs here."""

    keys: list[PublicKey] = Field([])  # Ed25519
    signed_jobs: bool = False  # every job must be signed, not only one that brings code


class SitePolicy(Section):
    """A whole policy."""

    site_policy: int
    approval: Literal["automatic", "manual"] = "manual"
    jobs: Jobs = Jobs()
    data: Data = Data()
    leaves: Leaves = Leaves()
    privacy: Privacy = Privacy()
    resources: Resources = Resources()
    code: Code = Code()


def load_policy(path: str | Path) -> SitePolicy:
    """The policy in a file.

    Raises:
        ConfigError: the file can't be read or is not TOML.
        JobError: it has problems; all of them, with their lines.
        VersionError: a newer Atoll wrote it.
    """
    return read_policy(read(path, "site policy"), Path(path).name)


def read_policy(text: str, file: str = "site-policy.toml") -> SitePolicy:
    """The policy in a text. Raises as `load_policy` does.

    >>> read_policy("site_policy = 1\\n[leaves]\\nround_mib = 64.0\\n").leaves.round_mib
    64.0
    >>> read_policy("site_policy = 1\\n[leave]\\nround_mib = 64.0\\n")
    Traceback (most recent call last):
    atoll.errors.JobError: site-policy.toml:2: there is no section [leave]; did you mean 'leaves'?
    """
    document = parse(text, file)
    version = document.values.get("site_policy")
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
        raise VersionError(f"{document.place(('site_policy',))}: the policy is of format {version}: upgrade Atoll")
    problems: list[tuple[Spot, str]] = []
    policy = None
    if isinstance(version, int) and not isinstance(version, bool) and version != FORMAT:
        problems.append((("site_policy",), f"site_policy = {spelled(version)}: must be {FORMAT}, the format of this file"))
    try:
        policy = SitePolicy.model_validate(dict(document.values))
    except ValidationError as error:
        problems += [told(document.values, SitePolicy, detail, f"site_policy = {FORMAT}") for detail in error.errors()]
    if policy is not None:
        problems += _unknown(policy)
    if problems or policy is None:
        ordered = sorted(set(problems), key=lambda problem: (document.order(problem[0]), problem[1]))
        raise JobError(f"{document.place(spot)}: {told}" for spot, told in ordered)
    return policy


def _unknown(policy: SitePolicy) -> Iterator[tuple[Spot, str]]:
    """Names that no catalog has: most likely slips, which would refuse every job."""
    jobs = policy.jobs
    named = {
        ("jobs", "algorithms"): ("algorithm", jobs.algorithms),
        ("jobs", "locals"): ("local", jobs.locals),
        ("jobs", "transforms"): ("transform", jobs.transforms),
        ("jobs", "require_transforms"): ("transform", [each.name for each in jobs.require_transforms]),
        ("data", "names"): ("dataset", policy.data.names),
    }
    for (section, key), (kind, names) in named.items():
        for name in names or ():
            try:
                catalog.find(kind, name)
            except UnknownName as error:
                yield (section, key), f"[{section}] {key}: {error}"
    for each in jobs.require_transforms:
        if jobs.transforms is not None and each.name not in jobs.transforms:
            yield ("jobs", "transforms"), f"[jobs] transforms: must have {each.name!r} too, which require_transforms asks for"


def is_open(hours: str | None, now: time) -> bool:
    """Whether a time of the day lies in the hours; they may pass midnight.

    >>> is_open("20:00-06:00", time(23, 30)), is_open("20:00-06:00", time(6, 0)), is_open(None, time(12))
    (True, False, True)
    """
    if hours is None:
        return True
    begins, ends = (time.fromisoformat(each) for each in hours.split("-"))
    now = now.replace(tzinfo=None)
    return begins <= now < ends if begins < ends else now >= begins or now < ends
