"""Every problem of a job file at once, each with its line: nothing is built, nothing heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from atoll import catalog
from atoll.errors import ConfigError, JobError, UnknownName, VersionError
from atoll.job import values
from atoll.job.schema import FORMAT, Job
from atoll.job.sentences import at_spot, hint, model_at, nearest, rule, spelled
from atoll.job.text import Document, Spot
from atoll.job.together import Problem, absent, clients_of, together

__all__ = ["Problem", "check", "clients_of", "problems_of", "settable", "spelling"]

# Parameters that the builder fills in from the rest of the job when the file does not set them.
WIRED: Mapping[str, frozenset[str]] = {
    "dataset": frozenset({"seed"}),
    "partition": frozenset({"seed"}),
    "task": frozenset({"seed", "dataset"}),
    "model": frozenset({"seed"}),
    "local": frozenset({"task", "seed"}),
    "algorithm": frozenset({"local", "task", "population", "seed"}),
    "transform": frozenset({"seed", "population", "participation"}),
    "selection": frozenset({"task", "seed"}),
    "engine": frozenset({"locals_", "clients", "memories"}),
    "fleet": frozenset({"seed"}),
}
SECTIONS = {
    "data": "dataset",
    "task": "task",
    "local": "local",
    "algorithm": "algorithm",
    "broadcast": "transform",
    "policy": "policy",
    "selection": "selection",
    "engine": "engine",
    "fleet": "fleet",
    "personalise": "local",
}


def check(document: Document) -> Job:
    """The job that the document describes.

    Raises:
        VersionError: the file was written by a newer Atoll.
        JobError: every problem at once, in the file's order.
    """
    version = document.values.get("atoll")
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
        raise VersionError(
            f"{document.place(('atoll',))}: the job file is of format {version}, and this Atoll reads up to {FORMAT}: "
            f"upgrade Atoll, or write the file for format {FORMAT}."
        )
    job, problems = _typed(document)
    problems = [*problems, *_named(document.values, document)]
    if job is not None and not problems:
        problems = list(together(job))
    if problems or job is None:
        ordered = sorted(set(problems), key=lambda problem: (document.order(problem.spot), problem.text))
        raise JobError(f"{document.place(problem.spot)}: {problem.text}" for problem in ordered)
    return job


def _typed(document: Document) -> tuple[Job | None, list[Problem]]:
    """The sections and their own keys, through pydantic."""
    values = dict(document.values)
    problems: list[Problem] = []
    if not isinstance(values.get("atoll", FORMAT), int) or values.get("atoll", FORMAT) != FORMAT:
        problems.append(Problem(("atoll",), f"atoll = {spelled(values['atoll'])}: must be {FORMAT}, the format of this file"))
    try:
        return Job.model_validate(values), problems
    except ValidationError as error:
        return None, [*problems, *(_sentence(document.values, detail) for detail in error.errors())]


def _sentence(values: Mapping[str, Any], detail: Any) -> Problem:
    spot: Spot = tuple(part for part in detail["loc"])
    table, key, kind = spot[:-1], spot[-1], detail["type"]
    at = _where(table)
    if kind == "extra_forbidden":
        known = list(model_at(Job, table).model_fields)
        return Problem(spot, f"{at}{_section(key, spot, values)}{nearest(str(key), known)}")
    if kind == "missing":
        if key == "name":
            return Problem(table, f"{at}name is missing: {_names(str(table[0]))}")
        if key in SECTIONS:
            return Problem((), f"[{key}] is missing: a section with {_names(str(key))}")
        mend = f"write `atoll = {FORMAT}` first" if key == "atoll" else "a whole number" if key == "rounds" else "give it a value"
        return Problem(table, f"{at}{key} is missing: {mend}")
    value = at_spot(values, spot)
    if kind in ("model_type", "list_type", "dict_type", "model_attributes_type"):
        shape = f"[[{key}]] tables" if key == "transforms" else f"a table, [{'.'.join(map(str, spot))}]"
        return Problem(spot, f"{at}{key} = {spelled(value)}: must be {shape}")
    return Problem(spot, f"{at}{key} = {spelled(value)}: {rule(detail)}")


def _names(section: str) -> str:
    return f"a name from `atoll catalog {SECTIONS.get(section, 'transform')}`"


def _section(key: str | int, spot: Spot, values: Mapping[str, Any]) -> str:
    return f"there is no section [{key}]" if isinstance(at_spot(values, spot), dict) else f"there is no key {str(key)!r}"


def _named(values_: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """The sections that name a factory, against the catalog."""
    for section, kind in SECTIONS.items():
        if section in values_:
            yield from _choice(kind, values_[section], (section,))
    transforms = values_.get("transforms", [])
    for i, given in enumerate(transforms if isinstance(transforms, list) else []):
        yield from _choice("transform", given, ("transforms", i))


def _choice(kind: str, given: Any, spot: Spot) -> Iterator[Problem]:
    """One name and its parameters, nested names included."""
    if isinstance(given, str):
        given = {"name": given}
    name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(name, str):
        if len(spot) > 2 or (isinstance(spot[-1], str) and len(spot) > 1):  # the top sections were judged by the schema
            yield Problem(spot, f"{_where(spot)}name is missing: a name from `atoll catalog {kind}`")
        return
    try:
        entry = catalog.find(kind, name)
    except UnknownName as error:
        yield Problem((*spot, "name"), f"{_where(spot)}{error}")
        return
    for package, extra in entry.needs:
        if absent(package):
            yield Problem((*spot, "name"), f"{_where(spot)}{name} needs the package {package!r}: pip install 'atoll[{extra}]'")
    for key, value in given.items():
        if key != "name":
            yield from _parameter(entry, key, value, (*spot, key))
    for parameter in entry.parameters:
        key = spelling(parameter)
        if parameter.required and not parameter.variadic and key not in given and parameter.name not in WIRED.get(kind, ()):
            yield Problem(spot, f"{_where(spot)}{key} is missing: {_mend(name, parameter)}")


def spelling(parameter: catalog.Parameter) -> str:
    """What a job file calls the parameter: a task's `module` is its `model`."""
    return "model" if parameter.name == "module" and values.kind_of(parameter.annotation) == "model" else parameter.name


def _mend(name: str, parameter: catalog.Parameter) -> str:
    nested, each = values.kind_of(parameter.annotation), values.kind_of_each(parameter.annotation)
    if nested or each:
        return f"{'a list, each ' if each else ''}a name from `atoll catalog {nested or each}`"
    if not values.settable(parameter.annotation):
        return f"{name} takes {parameter.annotation}, which only Python can give"
    return f"{name} has no default for it"


def _parameter(entry: catalog.Entry, key: str, value: Any, spot: Spot) -> Iterator[Problem]:
    at = _where(spot[:-1])
    parameter = next((p for p in entry.parameters if spelling(p) == key and not p.variadic), None)
    nested = values.kind_of(parameter.annotation) if parameter else None
    each = values.kind_of_each(parameter.annotation) if parameter else None
    if parameter is None or (key in WIRED.get(entry.kind, ()) and not values.settable(parameter.annotation)):
        known = [spelling(p) for p in settable(entry)]
        yield Problem(spot, f"{at}{entry.name} has no parameter {key!r}{hint(key, known) or _has(known)}")
    elif nested and isinstance(value, dict | str) and not (isinstance(value, str) and values.settable(parameter.annotation)):
        yield from _choice(nested, value, spot)
    elif each:
        yield from _choices(each, value, spot)
    else:
        wrong = values.problem(parameter, value)
        if wrong:
            yield Problem(spot, f"{at}{key} = {spelled(value)}: {wrong}")
        elif key == "adapter" and entry.kind == "task":
            yield from _adapter(value, spot)
        elif _is_path(parameter) and isinstance(value, str) and not os.access(os.path.expanduser(value), os.R_OK):
            why = "can't be read" if os.path.exists(os.path.expanduser(value)) else "there is no such file or folder"
            yield Problem(spot, f"{at}{key} = {spelled(value)}: {why}")


def _choices(kind: str, given: Any, spot: Spot) -> Iterator[Problem]:
    """A list of names, each with its parameters."""
    if not isinstance(given, list):
        told = f"{spot[-1]} = {spelled(given)}: must be a list, each a name from `atoll catalog {kind}` or a table with one"
        yield Problem(spot, f"{_where(spot[:-1])}{told}")
        return
    for i, one in enumerate(given):
        yield from _choice(kind, one, (*spot, i))


def _adapter(given: Any, spot: Spot) -> Iterator[Problem]:
    """The settings of an adapter, by the function that the task itself reads them with."""
    from atoll.tasks import adapter

    try:
        adapter.read(given)
    except ConfigError as error:
        key = next((key for key in given if f" {key} " in f"{error} " or f"'{key}'" in str(error)), None)
        yield Problem(spot if key is None else (*spot, key), f"{_where(spot)}{error}")
    if absent("peft"):
        yield Problem(spot, f"{_where(spot)}adapters need the package 'peft': pip install 'atoll[llm]'")


def settable(entry: catalog.Entry) -> list[catalog.Parameter]:
    """The parameters that a job file can set: simple values, and names from the catalog."""
    wired = WIRED.get(entry.kind, frozenset())
    return [
        p
        for p in entry.parameters
        if not p.variadic
        and (
            values.settable(p.annotation)
            or values.kind_of_each(p.annotation)
            or (values.kind_of(p.annotation) and p.name not in wired)
        )
    ]


def problems_of(document: Document, section: str) -> Iterator[Problem]:
    """The problems of one section that names a factory, the rest of the document aside."""
    given = document.values.get(section)
    if given is None:
        yield Problem((), f"[{section}] is missing: a section with {_names(section)}")
    elif not isinstance(given, str) and not (isinstance(given, dict) and isinstance(given.get("name"), str)):
        yield Problem((section,), f"[{section}] name is missing: {_names(section)}")
    else:
        yield from _choice(SECTIONS[section], given, (section,))


def _is_path(parameter: catalog.Parameter) -> bool:
    return "Path" in parameter.annotation or parameter.name in ("path", "folder", "file")


def _where(table: Spot) -> str:
    """`[data.partition] `, `[[transforms]] 2: `; empty at the top of the file."""
    if not table:
        return ""
    if table[0] == "transforms" and len(table) > 1 and isinstance(table[1], int):
        inside = ".".join(map(str, table[2:]))
        inside = re.sub(r"\.(\d+)", lambda found: f" number {int(found[1]) + 1}", inside)  # counted from 1, as a person does
        return f"[[transforms]] number {table[1] + 1}{', ' + inside if inside else ''}: "
    return f"[{'.'.join(map(str, table))}] "


def _has(known: list[str]) -> str:
    return f"; it has {', '.join(known)}" if known else "; it has no parameters"
