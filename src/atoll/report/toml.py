"""A configuration as TOML, to be copied into a job file; the standard library reads TOML and does not write it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any


def document(config: Mapping[str, Any]) -> str:
    """`config` as a TOML document. What is None is left out, as TOML has no word for it and a job file needs none.

    >>> print(document({"rounds": 2, "data": {"name": "digits", "alpha": 0.5}, "transforms": [{"name": "clip"}]}))
    rounds = 2
    <BLANKLINE>
    [data]
    name = "digits"
    alpha = 0.5
    <BLANKLINE>
    [[transforms]]
    name = "clip"
    """
    return "\n".join(_table(config, ())).strip("\n")


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines, below = [], list[str]()
    for key, value in table.items():
        here = (*path, _key(key))
        if isinstance(value, Mapping):
            inner = _table(value, here)
            headed = not inner or not inner[0].startswith("\n")
            below += [f"\n[{'.'.join(here)}]", *inner] if headed else inner
        elif _is_tables(value):
            for item in value:
                below += [f"\n[[{'.'.join(here)}]]", *_table(item, here)]
        elif value is not None:
            lines.append(f"{here[-1]} = {_value(value)}")
    return lines + below


def _is_tables(value: Any) -> bool:
    return (
        isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(isinstance(v, Mapping) for v in value)
    )


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_value(v) for v in value if v is not None) + "]"
    return _text(str(value))


def _text(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for the slash that TOML does not know and DEL that it wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
