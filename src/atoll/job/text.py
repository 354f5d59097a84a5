"""A job file as values and the place of each: `tomllib` gives the values, a small scanner the line of every key."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from atoll.errors import ConfigError

Spot: TypeAlias = tuple[str | int, ...]  # where a value is: ("transforms", 0, "norm")
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


@dataclass(frozen=True)
class Document:
    """What a job file says, after the overrides."""

    values: Mapping[str, Any]
    file: str
    lines: Mapping[Spot, int]
    overridden: Mapping[Spot, str]  # spot -> the --set that gave it
    text: str = ""

    def place(self, spot: Spot) -> str:
        """`job.toml:12`, or the --set that gave the value; the nearest known place of what is not there itself."""
        found = self._nearest(spot)
        return f"{self.file}:{found}" if isinstance(found, int) else f"--set {found}"

    def order(self, spot: Spot) -> float:
        """Sorts problems as a reader meets them: the file's lines, then the overrides."""
        found = self._nearest(spot)
        return found if isinstance(found, int) else math.inf

    def _nearest(self, spot: Spot) -> int | str:
        """A line, or an override."""
        for end in range(len(spot), 0, -1):
            if spot[:end] in self.overridden:  # with all that is beneath it, whatever the file has there
                return self.overridden[spot[:end]]
        for end in range(len(spot), 0, -1):
            if spot[:end] in self.lines:
                return self.lines[spot[:end]]
            beneath = [given for place, given in self.overridden.items() if place[:end] == spot[:end]]
            if beneath:  # a table that only the overrides made
                return beneath[0]
        return 1


def load(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read a job file and apply `key=value` overrides.

    Raises:
        ConfigError: the file can't be read, is not TOML, or an override can't be applied.
    """
    return parse(read(path, "job file"), Path(path).name, overrides)


def read(path: str | Path, what: str) -> str:
    """The text of a TOML file that a person wrote; `what` it is, for the error. Raises ConfigError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8; a {what} is TOML.") from None
    except OSError as error:
        raise ConfigError(f"can't read the {what} {path}: {error.strerror or error}.") from None


def parse(text: str, file: str = "job.toml", overrides: Sequence[str] = ()) -> Document:
    """The document of a text.

    >>> document = parse("[local]\\nlr = 0.1\\n", overrides=["local.epochs=2"])
    >>> document.place(("local", "lr")), document.place(("local", "epochs"))
    ('job.toml:2', '--set local.epochs=2')
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, where = str(error).partition(" (at line ")
        line = where.partition(",")[0] if where[:1].isdigit() else str(text.count("\n") + 1)
        raise ConfigError(f"{file}:{line}: not valid TOML: {message[:1].lower()}{message[1:]}.") from None
    overridden: dict[Spot, str] = {}
    for override in overrides:
        overridden[_apply(values, override)] = override
    return Document(values, file, dict(locate(text)), overridden, text)


def locate(text: str) -> Iterator[tuple[Spot, int]]:
    """Every table and key of a valid TOML text with its line, from 1; what an inline table holds lies with its key.

    >>> dict(locate("a = 1\\n[[t]]\\nb.c = 2\\n"))
    {('a',): 1, ('t',): 2, ('t', 0): 2, ('t', 0, 'b'): 3, ('t', 0, 'b', 'c'): 3}
    """
    seen: set[Spot] = set()
    counts: dict[Spot, int] = {}  # tables in each array of tables so far
    table: Spot = ()
    at, line = 0, 1
    while at < len(text):
        char = text[at]
        if char == "\n":
            at, line = at + 1, line + 1
        elif char.isspace():
            at += 1
        elif char == "#":
            at = _line_end(text, at)
        else:
            array, header = text.startswith("[[", at), char == "["
            keys, at = _keys(text, at + (2 if array else 1 if header else 0))
            if header:
                table = _table(keys, array, counts)
                found = [table[:end] for end in range(1, len(table) + 1)]
                end = _line_end(text, at)
            else:
                found = [(*table, *keys[:end]) for end in range(1, len(keys) + 1)]
                end = _value_end(text, at + 1)
            for spot in found:
                if spot not in seen:
                    seen.add(spot)
                    yield spot, line
            line += text.count("\n", at, end)
            at = end


def _table(keys: tuple[str, ...], array: bool, counts: dict[Spot, int]) -> Spot:
    """The spot of a header: a key that names an array of tables stands for its last one."""
    spot: Spot = ()
    for i, key in enumerate(keys):
        spot = (*spot, key)
        last = i == len(keys) - 1
        if last and array:
            counts[spot] = counts.get(spot, 0) + 1
        if spot in counts:
            spot = (*spot, counts[spot] - 1)
    return spot


def _keys(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """The dotted key that starts at `at`, and the index of the `=` or `]` after it."""
    keys: list[str] = []
    while True:
        while text[at] in " \t.":
            at += 1
        if text[at] in "\"'":
            end = _string_end(text, at)
            keys.append(tomllib.loads(f"k = {text[at:end]}")["k"])
            at = end
        elif text[at] in _BARE:
            end = at
            while end < len(text) and text[end] in _BARE:
                end += 1
            keys.append(text[at:end])
            at = end
        else:
            return tuple(keys), at


def _value_end(text: str, at: int) -> int:
    """The index of the newline that ends the value starting at `at`, or the text's end."""
    depth = 0
    while at < len(text):
        char = text[at]
        if char == "\n" and depth == 0:
            return at
        if char == "#":
            at = _line_end(text, at)
            continue
        if char in "\"'":
            at = _string_end(text, at)
            continue
        depth += (char in "[{") - (char in "]}")
        at += 1
    return at


def _string_end(text: str, at: int) -> int:
    quote = text[at] * 3 if text.startswith(text[at] * 3, at) else text[at]
    at += len(quote)
    while at < len(text) and not text.startswith(quote, at):
        at += 2 if text[at] == "\\" and quote[0] == '"' else 1
    at += len(quote)
    while len(quote) == 3 and at < len(text) and text[at] == quote[0]:
        at += 1  # a quote or two may stand right before the closing three
    return at


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _apply(values: dict[str, Any], override: str) -> Spot:
    """Put one `key=value` into the values; returns where it went."""
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as key=value, for example --set local.lr=0.1.")
    spot: Spot = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
    if isinstance(spot[0], int) or "" in spot:
        raise ConfigError(f"--set {override}: {key!r} is not a dotted key, such as local.lr or transforms.0.norm.")
    here: Any = values
    for i, part in enumerate(spot[:-1]):
        if isinstance(here, dict) and isinstance(part, str):
            here = here.setdefault(part, {})
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            raise ConfigError(f"--set {override}: {'.'.join(map(str, spot[: i + 1]))} is not in the job file.")
    last = spot[-1]
    if isinstance(here, dict) or (isinstance(here, list) and isinstance(last, int) and last < len(here)):
        here[str(last) if isinstance(here, dict) else last] = _value(raw.strip())  # type: ignore[index]
        return spot
    raise ConfigError(f"--set {override}: {'.'.join(map(str, spot[:-1]))} is not a table of the job file.")


def _value(raw: str) -> Any:
    """A TOML value; a bare word is a string, so that `--set local.name=adamw` needs no quotes."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return raw
