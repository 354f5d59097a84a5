"""What is wrong with a person's TOML, in sentences that name the value, the rule and the mend; pydantic has found it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from atoll.job.text import Spot


def told(values: Mapping[str, Any], model: type[BaseModel], detail: Any, first: str) -> tuple[Spot, str]:
    """Where a problem is, and its sentence. `model`: of the whole file; `first`: the line that it begins with.

    >>> from pydantic import ConfigDict, ValidationError
    >>> class File(BaseModel):
    ...     model_config = ConfigDict(extra="forbid")
    ...     rounds: int
    >>> try:
    ...     File.model_validate({"rounds": 3, "ronds": 3})
    ... except ValidationError as error:
    ...     told({"ronds": 3}, File, error.errors()[0], "file = 1")
    (('ronds',), "there is no key 'ronds'; did you mean 'rounds'?")
    """
    spot: Spot = tuple(detail["loc"])
    table, key, kind = spot[:-1], spot[-1], detail["type"]
    named = [str(part) for part in spot if isinstance(part, str)]
    at = f"[{named[0]}] " if len(named) > 1 else ""
    if kind == "missing":
        mend = f"write `{first}` first" if first.startswith(f"{key} ") else "give it a value"
        return table, f"{at}{key} is missing: {mend}"
    value = at_spot(values, spot)
    if kind == "extra_forbidden":
        what = f"there is no section [{key}]" if isinstance(value, dict) and not table else f"there is no key {str(key)!r}"
        return spot, f"{at}{what}{nearest(str(key), sorted(model_at(model, table).model_fields))}"
    return spot, f"{at}{'.'.join(named[1:]) or key} = {spelled(value)}: {rule(detail)}"


def rule(detail: Any) -> str:
    """The rule that a value breaks."""
    context = detail.get("ctx", {})
    rules = {
        "int_type": "must be a whole number",
        "float_type": "must be a number",
        "bool_type": "must be true or false",
        "string_type": "must be a text in quotes",
        "string_too_short": "must not be empty",
        "list_type": "must be a list",
        "dict_type": "must be a table",
        "model_type": "must be a table",
        "value_error": str(context.get("error")),
        "greater_than": f"must be above {_number(context.get('gt'))}",
        "greater_than_equal": f"must be {_number(context.get('ge'))} or more",
        "less_than": f"must be below {_number(context.get('lt'))}",
        "less_than_equal": f"must be {_number(context.get('le'))} or less",
    }
    message = str(detail["msg"])
    return rules.get(detail["type"], message[:1].lower() + message[1:])


def at_spot(values: Any, spot: Spot) -> Any:
    """What a file says there; None for a place within a value that pydantic alone names, such as the arm of a union."""
    for part in spot:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def model_at(model: type[BaseModel], table: Spot) -> type[BaseModel]:
    """The pydantic model of a table of the file whose model this is."""
    for part in table:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(each for each in _parts(annotation) if isinstance(each, type) and issubclass(each, BaseModel))
    return model


def spelled(value: Any) -> str:
    """A value as a file spells it, shortened.

    >>> spelled(True), spelled("fedavg")
    ('true', '"fedavg"')
    """
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def hint(name: str, known: Iterable[str]) -> str:
    """What was meant, most likely; else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def nearest(name: str, known: list[str]) -> str:
    """What was meant, or all that there is."""
    return hint(name, known) or f"; known: {', '.join(known)}"


def _parts(annotation: Any) -> Iterator[Any]:
    """A type, and those that it is made of: the arms of a union, the elements of a list."""
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _parts(part)


def _number(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
