"""A fleet from a file: the devices that somebody measured, in CSV or in JSON lines."""

from __future__ import annotations

import bisect
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atoll import rng
from atoll.errors import ConfigError, DataError
from atoll.fleets import energy as energies
from atoll.fleets.fleet import Device, Energy, Fleet, Offline
from atoll.types import ClientId

COLUMNS = ("client", "example_s", "down", "up", "sessions")
Span = tuple[float, float]


class Row(NamedTuple):
    """One device of the file."""

    device: Device
    sessions: tuple[Span, ...]  # in order, none overlapping; none at all: always there


def trace(
    path: str, offline: Offline = "lost", repeat_s: float | None = None, energy: Energy | None = None, seed: int = 0
) -> Fleet:
    """Devices of a file with the columns client, example_s, down, up (bytes/s) and sessions.

    CSV, where sessions are written `0-3600;7200-9000` in seconds, or JSON lines (`.jsonl`), where they are lists of two
    numbers. Without sessions a device is always there. A client that the file names has that device; any other has one
    of them, drawn by `seed`. `repeat_s`: sessions come again after so many seconds, such as 86400 for one day's.

    Raises DataError for what is wrong in the file, with its line and value, ConfigError for `offline` and `repeat_s`.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "fleet.csv"
    >>> _ = file.write_text("client,example_s,down,up,sessions\\nnorth,0.1,2e6,1e6,0-60;90-120\\n")
    >>> fleet = trace(str(file))
    >>> fleet.device("north").example_s, fleet.session("north", 70.0)
    (0.1, (90.0, 120.0))
    """
    if offline not in ("lost", "pauses"):
        raise ConfigError(f"trace offline = {offline!r}: must be 'lost' or 'pauses'")
    rows = dict(_rows(Path(path)))
    if not rows:
        raise DataError(f"{path} has no device: write one line for each, with {', '.join(COLUMNS)}")
    latest = max((spans[-1][1] for _, spans in rows.values() if spans), default=0.0)
    if repeat_s is not None and not latest <= repeat_s < math.inf:
        raise ConfigError(f"trace repeat_s = {repeat_s}: must be at least {latest:g}, where the last session of {path} ends")
    drawn, names = energies.handset() if energy is None else energy, sorted(rows)

    def row(client: ClientId) -> Row:
        return rows.get(client) or rows[names[rng.seed(seed, "trace", client) % len(names)]]

    def session(client: ClientId, at_s: float) -> Span:
        spans = row(client).sessions
        if not spans:
            return -math.inf, math.inf
        before = math.floor(at_s / repeat_s) * repeat_s if repeat_s else 0.0
        found = _session(spans, at_s - before)
        if found is None and repeat_s:
            before, found = before + repeat_s, spans[0]
        return (math.inf, math.inf) if found is None else (before + found[0], before + found[1])

    def online(clients: Sequence[ClientId], at_s: float) -> Sequence[ClientId]:
        return [client for client in clients if session(client, at_s)[0] <= at_s]

    about = f"{len(rows)} devices of {Path(path).name}, seed {seed}; {energies.said(drawn)} (simulated)"
    return Fleet("trace", lambda client: row(client).device, session, online, drawn, offline, about)


def _session(spans: Sequence[Span], at_s: float) -> Span | None:
    """The one that is on, else the next."""
    after = bisect.bisect_right(spans, at_s, key=lambda span: span[1])
    return spans[after] if after < len(spans) else None


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    seen: set[str] = set()
    for line, values in _lines(path):
        at = f"{path}, line {line}"
        if missing := [name for name in COLUMNS[:4] if values.get(name) in (None, "")]:
            raise DataError(f"{at}: {missing[0]} is missing; a device has {', '.join(COLUMNS)}")
        client = str(values["client"])
        if client in seen:
            raise DataError(f"{at}: client {client!r} was there before; one line a device")
        seen.add(client)
        device = Device(*(_number(values[name], name, at) for name in COLUMNS[1:4]))
        yield client, Row(device, _spans(values.get("sessions"), at))


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from _json_lines(path, file) if path.suffix in (".jsonl", ".json") else _csv_lines(path, file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


def _csv_lines(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(file)
    if missing := [name for name in COLUMNS[:4] if name not in (reader.fieldnames or ())]:
        raise DataError(f"{path}, line 1: there is no column {missing[0]!r}; a fleet has {', '.join(COLUMNS)}")
    for values in reader:
        yield reader.line_num, values


def _json_lines(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {line}: {text.strip()[:60]!r} is not JSON: {error.msg}") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {line}: {text.strip()[:60]!r} is not an object; write one for each device")
        yield line, values


def _number(value: Any, name: str, at: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise DataError(f"{at}: {name} = {value!r}: must be a finite number above 0")
    return number


def _spans(given: Any, at: str) -> tuple[Span, ...]:
    """Sessions as text or as lists of two, in order."""
    parts: Any = [part.split("-") for part in given.split(";") if part.strip()] if isinstance(given, str) else given or []
    found: list[Span] = []
    for part in parts if isinstance(parts, list) else [parts]:
        try:
            begin, end = (float(value) for value in part)
        except (TypeError, ValueError):
            raise DataError(f"{at}: sessions has {part!r}: must be a beginning and an end in seconds, as 0-3600") from None
        if not (found[-1][1] if found else 0.0) <= begin < end < math.inf:
            raise DataError(f"{at}: session {begin:g}-{end:g}: must begin after the one before it, from 0 on, and end later")
        found.append((begin, end))
    return tuple(found)
