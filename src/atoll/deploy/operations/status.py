"""What a deployed job is at, as plain values: the coordinator, each site, each client; as JSON and back, checked.

The coordinator keeps a `Live` in the file status.json of the run's folder; with the run's own record it is a `Status`, which
`why` puts into sentences. Times are seconds since 1970 by the coordinator's clock, rounds are counted from 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from atoll.errors import StoreError

if TYPE_CHECKING:
    from atoll.policy import Policy
    from atoll.remote.hub import Hub

T = TypeVar("T")
FILE = "status.json"  # in the run's folder
BEAT_S = 5.0  # the file is written anew so often, whether or not anything has changed
SILENT_S = 30.0  # a coordinator whose file is older is not heard any more
MOST_TEXT = 1000  # characters of what a site says that are kept


class Rules(NamedTuple):
    """When the job's rounds begin and close."""

    close_after: int | None = None  # answers; None: of all who are asked
    min_updates: int = 1
    timeout_s: float | None = None  # None: no deadline
    lease_s: float = 3600.0
    on_failure: str = "drop"
    patience_s: float = 300.0  # for a site that is not there
    start_with: int | None = None  # sites with which the first round begins, and without which it does not
    enough: int | None = None  # clients with which a round begins; None: it waits for all


class SiteState(NamedTuple):
    """A site of the job."""

    site: str
    online: bool
    since: float | None = None  # when it was last heard, or went; None: it has not called since the coordinator began
    consent: str = ""  # "accepted" | "refused" | "waiting" | "": it has not answered the invitation in its present session
    reason: str = ""


class ClientState(NamedTuple):
    """A client of the job."""

    client: str
    site: str
    doing: str = "idle"  # as `remote.values.Doing`
    done: int = 0  # bytes of a transfer, steps of a training
    total: int = 0  # 0: not known
    since: float | None = None  # when it began to do this
    moved: float | None = None  # when anything of this was last seen to move
    round: int | None = None  # of the work that it is asked for; None: nothing is asked of it
    work: str = ""
    text: str = ""
    heard: bool = False  # it has answered what is asked for now


class Trouble(NamedTuple):
    """A client that failed."""

    round: int
    client: str
    work: str
    text: str


class Said(NamedTuple):
    """A line of a site's log."""

    at: float
    site: str
    line: str


class Live(NamedTuple):
    """A job that is served, as its coordinator last wrote it."""

    at: float  # when it was written
    began: float  # when the coordinator took the job up
    doing: str  # what the coordinator does, in words
    own: bool  # it does that itself, and waits for nobody
    round: int  # rounds done: the number of the open one
    opened: float  # when the open round began to wait for its sites
    asked: float | None  # when the first client was asked for what is asked for now
    work: str  # what is asked for now, or was last
    rules: Rules
    sites: tuple[SiteState, ...] = ()
    clients: tuple[ClientState, ...] = ()
    lost: tuple[Trouble, ...] = ()  # in the open round
    whole: bool = True  # False: one site's part, which alone it may see
    first: int = 0  # the round that this coordinator began with


class Status(NamedTuple):
    """A run, and what the coordinator last wrote of it; `live` is None where it was never served, as in a simulation."""

    run: str
    name: str
    state: str  # one of `store.record.STATUSES`
    rounds: int
    rounds_done: int
    now: float  # when this was put together
    live: Live | None = None
    finished: str | None = None  # ISO 8601, UTC
    error: str = ""
    failures: tuple[Trouble, ...] = ()  # the last ones, the newest last
    logs: tuple[Said, ...] = ()  # what sites have sent, where it was asked for, the newest last


def rules_of(policy: Policy, patience_s: float, start_with: int | None = None) -> Rules:
    """What says when the rounds of a job begin and close."""
    timeout_s, enough = None if math.isinf(policy.timeout_s) else policy.timeout_s, None if policy.exact else policy.in_flight
    closes = policy.close_after, policy.min_updates, timeout_s, policy.lease_s, policy.on_failure
    return Rules(*closes, patience_s, start_with, enough)


def gathered(hub: Hub, job: str, heard: Collection[str], now: float) -> tuple[tuple[SiteState, ...], tuple[ClientState, ...]]:
    """The sites and the clients of a job, in their order. Raises RemoteError where the job is not open at the hub."""
    sites, clients = list[SiteState](), list[ClientState]()
    whose: dict[str, str] = {}
    for name, seen in sorted(hub.presence(job).items()):
        whose |= dict.fromkeys(seen.clients, name)
        since = None if seen.silent_s is None else _second(now - seen.silent_s)
        consent, reason = "", ""
        if seen.consent is not None:
            held = "waiting" if seen.consent.about == b"waiting" else "refused"
            consent, reason = "accepted" if seen.consent.accepted else held, shown(seen.consent.reason)
        sites.append(SiteState(name, seen.online, since, consent, reason))
    for client, at in sorted(hub.progress(job).items()):
        round, work = (at.place.round, at.place.work) if at.place else (None, "")
        since, moved = (None, None) if at.doing == "idle" else (_second(now - at.since_s), _second(now - at.silent_s))
        doing = "waiting" if at.doing == "fetching" and 0 < at.total <= at.done else at.doing  # the model is there
        told = (doing, at.done, at.total, since, moved, round, work, shown(at.text) if at.place else "")
        clients.append(ClientState(client, whose.get(client, ""), *told, client in heard))
    return tuple(sites), tuple(clients)


def _second(moment: float) -> float:
    return float(round(moment))  # so that nothing seems to change that does not


def shown(text: str, most: int = MOST_TEXT) -> str:
    """What somebody else wrote, as it may be shown on a terminal: on one line, without control characters, not for ever.

    >>> shown("a" + chr(27) + "[2J" + chr(10) + "b")
    'a [2J b'
    """
    plain = "".join(each if each.isprintable() else " " for each in text[: most + 1])
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def of_site(status: Status, site: str) -> Status:
    """The part of one site: all that it may see."""
    live = status.live
    mine = set() if live is None else {each.client for each in live.clients if each.site == site}

    def own(troubles: tuple[Trouble, ...]) -> tuple[Trouble, ...]:
        return tuple(each for each in troubles if each.client in mine)

    if live is not None:
        sites = tuple(each for each in live.sites if each.site == site)
        clients = tuple(each for each in live.clients if each.site == site)
        live = live._replace(sites=sites, clients=clients, lost=own(live.lost), whole=False)
    logs = tuple(each for each in status.logs if each.site == site)
    return status._replace(live=live, error="", failures=own(status.failures), logs=logs)


def to_json(value: Any) -> str:
    """Any of these values, as text."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def from_json(kind: type[T], text: str | bytes, where: str) -> T:
    """The value of this kind that a text holds; fields of a newer Atoll are passed over.

    Raises:
        StoreError: it holds none; `where` says whose text it is.

    >>> from_json(Said, to_json(Said(1.0, "north", "begins")), "a log")
    Said(at=1.0, site='north', line='begins')
    >>> from_json(Said, '{"at": "noon", "site": "a", "line": "b"}', "a log")
    Traceback (most recent call last):
    atoll.errors.StoreError: a log makes no sense: at is 'noon'; use one release of atoll at both ends
    """
    try:
        found: T = _read(kind, json.loads(text), "")
    except (ValueError, RecursionError) as error:
        told = str(error) or "it is too deep"
        raise StoreError(f"{where} makes no sense: {told}; use one release of atoll at both ends") from error
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(each) for name, each in zip(value._fields, value, strict=True)}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _read(kind: Any, given: Any, at: str) -> Any:
    """A value of a type that the classes above use. Raises ValueError with the place."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return None if given is None else _read(get_args(kind)[0], given, at)
    if origin is tuple and isinstance(given, list):
        return tuple(_read(get_args(kind)[0], each, f"{at}.{i}".lstrip(".")) for i, each in enumerate(given))
    if isinstance(kind, type) and hasattr(kind, "_fields") and isinstance(given, dict):
        hints = get_type_hints(kind)
        defaults: dict[str, Any] = getattr(kind, "_field_defaults", {})
        absent = [name for name in hints if name not in given and name not in defaults]
        if absent:
            raise ValueError(f"{at}.{absent[0]}".lstrip(".") + " is missing")
        return kind(**{name: _read(hints[name], given[name], f"{at}.{name}".lstrip(".")) for name in hints if name in given})
    if kind is float and isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given):
        return float(given)
    if kind in (int, str, bool) and type(given) is kind:
        return given
    raise ValueError(f"{at or 'it'} is {shown(repr(given), 60)}")
