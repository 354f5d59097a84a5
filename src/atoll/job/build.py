"""From a checked job to a federation: each section's factory is called, and what it needs is wired by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll import catalog
from atoll.errors import AtollError, ConfigError, JobError
from atoll.job import values
from atoll.job.check import WIRED, check, problems_of, spelling
from atoll.job.schema import Job, Named
from atoll.job.text import Document, load

if TYPE_CHECKING:
    from atoll.federation import Federation
    from atoll.types import Dataset


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """A job file, read and checked; `overrides` are `key=value`, as for `atoll run --set`.

    Raises:
        ConfigError: the file can't be read.
        JobError: it has problems; all of them, with their lines.
        VersionError: a newer Atoll wrote it.

    >>> from atoll.job.templates import named
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "first.toml"
    >>> _ = file.write_text(named("fashion", "first"))
    >>> load_job(file, ["rounds=2"]).rounds
    2
    """
    return check(load(path, overrides))


def dataset_of(document: Document) -> Dataset:
    """The data set of a document's [data], the rest of which may be missing.

    Raises:
        JobError: [data] has problems.
    """
    problems = list(problems_of(document, "data"))
    if problems:
        raise JobError(f"{document.place(problem.spot)}: {problem.text}" for problem in problems)
    given = document.values["data"]
    named = Named(name=given) if isinstance(given, str) else Named.model_validate(given)
    dataset: Dataset = make("dataset", named, seed=int(document.values.get("seed", 0)))
    return dataset


def make(kind: str, named: Named, **wired: Any) -> Any:
    """Call the factory of that name; `wired` fills the parameters that the job does not set itself.

    >>> make("policy", Named(name="synchronous", clients_per_round=5)).in_flight
    5
    """
    entry, given = catalog.find(kind, named.name), named.parameters
    arguments: dict[str, Any] = {}
    for parameter in entry.parameters:
        key, nested = spelling(parameter), values.kind_of(parameter.annotation)
        if key in given:
            value = given[key]
            plain = isinstance(value, str) and values.settable(parameter.annotation)
            if nested and isinstance(value, dict | str) and not plain:
                inner = Named(name=value) if isinstance(value, str) else Named.model_validate(value)
                value = make(nested, inner, **wired)
            arguments[parameter.name] = value
        elif parameter.name in WIRED.get(kind, ()) and parameter.name in wired:
            arguments[parameter.name] = wired[parameter.name]
    try:
        return entry.load()(**arguments)
    except ConfigError as error:
        raise ConfigError(f"[{_section(kind)}] {error}") from error


def build(job: Job) -> Federation:
    """The federation that the job describes: its data read, its model loaded, ready to run.

    Raises:
        AtollError: the data or the model can't be had, or the parts do not go together.
    """
    from atoll.federation import Federation
    from atoll.transforms.pipe import pipe

    dataset = make("dataset", job.data, seed=job.seed)
    task = make("task", job.task, seed=job.seed)
    wired = {"task": task, "seed": job.seed, "population": len(dataset.clients)}
    local = make("local", job.local, **wired) if job.local else None
    algorithm = make("algorithm", job.algorithm, local=local, **wired)
    links = [make("transform", each, **wired) for each in job.transforms]
    return Federation(task, dataset, pipe(algorithm, *links) if links else algorithm)


def _section(kind: str) -> str:
    return {"dataset": "data", "partition": "data.partition", "model": "task.model", "transform": "transforms"}.get(kind, kind)


__all__ = ["AtollError", "build", "dataset_of", "load_job", "make"]
