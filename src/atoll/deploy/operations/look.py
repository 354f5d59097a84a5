"""To look at a run from outside: its record and what its coordinator last wrote, on the coordinator's machine, without torch.

From another machine the same is asked over the coordinator's port: by researchers, auditors and admins, and by a site of its
own part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.deploy.operations import sitelogs
from atoll.deploy.operations.status import FILE, Live, Status, Trouble, from_json, of_site, shown, to_json
from atoll.errors import ConfigError, UnknownName, WrongRole
from atoll.store import files

if TYPE_CHECKING:
    from atoll.store.record import Summary
    from atoll.store.runs import Store

QUESTION = "status"  # the name of the question that a coordinator answers
SEES_ALL = ("researcher", "auditor", "admin")
_FAILURES = 20
_RUNS = 10  # the newest, where none is named
_LOG_LINES = 200  # of a site, at most, to who asks from afar


class Answered(NamedTuple):
    """What a coordinator answers."""

    found: tuple[Status, ...]


def look(store: Store, which: str | None, logs: int = 0) -> list[Status]:
    """The run that is meant by a job's name (its newest run) or by a run's id, its beginning or `last`; None: the newest served.

    `logs`: so many of the last lines of each site. Raises UnknownName, ConfigError where several are meant, StoreError.
    """
    rows = store.list()
    if which is None:
        served = [row for row in rows if (Path(row.folder) / FILE).exists()]
        return [_status(store, row, logs) for row in served[:_RUNS]]
    return [_status(store, _meant(store, rows, which), logs)]


def _meant(store: Store, rows: list[Summary], which: str) -> Summary:
    named = [row for row in rows if row.id == which] or [row for row in rows if row.name == which]
    id = named[0].id if named else store.find(which)
    return next(row for row in rows if row.id == id)


def _status(store: Store, row: Summary, logs: int) -> Status:
    folder, now = Path(row.folder), time.time()
    live = _live(folder / FILE)
    kept = store.incidents(row.id, "failure", _FAILURES)
    failures = [Trouble(each.round, each.client or "", each.work, shown(each.text)) for each in kept]
    failures += [each for each in (live.lost if live else ()) if each not in failures]  # not written to the database yet
    said = sitelogs.last(folder, logs) if logs else ()
    state = (row.id, row.name, row.status, row.rounds, row.rounds_done, now)
    return Status(*state, live, row.finished, row.error, tuple(failures[-_FAILURES:]), said)


def _live(path: Path) -> Live | None:
    if not path.exists():
        return None
    try:
        return from_json(Live, path.read_bytes(), str(path))
    except OSError as error:
        raise files.trouble(error, path) from error


def answering(store: Callable[[], Any]) -> Callable[[str, str, bytes], bytes]:
    """What answers the question `status` at a coordinator, whose runs `store()` opens; as `Hub(ask=...)` calls it.

    Who asks is a site by its name, or ROLE/NAME; "" is somebody on the coordinator's own machine, where TLS is waived.
    """

    def answer(who: str, question: str, body: bytes) -> bytes:
        if question != QUESTION:
            raise ConfigError(f"this coordinator answers no question called {shown(question, 80)!r}")
        which, logs = _read_question(body)
        role, _, name = who.rpartition("/")
        if role and role not in SEES_ALL:
            raise WrongRole(f"{name} is a {role}, and the status of jobs is for one of: {', '.join(SEES_ALL)}, and for sites")
        with store() as opened:
            found = _own_part(opened, which, logs, name) if name and not role else look(opened, which, logs)
        return to_json(Answered(tuple(found))).encode()

    return answer


def _own_part(store: Store, which: str | None, logs: int, site: str) -> list[Status]:
    """What a site may see; whether there are other jobs is not told to it."""
    try:
        found = look(store, which, logs)
    except (UnknownName, ConfigError):
        found = []
    mine = [each for each in found if each.live is not None and site in (its.site for its in each.live.sites)]
    if which is not None and not mine:
        raise UnknownName(f"the site {site} has no part in a job called {which!r}; a site may ask about its own jobs alone")
    return [of_site(each, site) for each in mine]


def question_of(which: str | None, logs: int = 0) -> bytes:
    """The body of the question."""
    return json.dumps({"job": which, "logs": logs}).encode()


def _read_question(body: bytes) -> tuple[str | None, int]:
    try:
        asked = json.loads(body)
        which, logs = asked["job"], asked["logs"]
    except (ValueError, KeyError, TypeError, RecursionError):
        which, logs = 0, 0
    if not (which is None or isinstance(which, str)) or type(logs) is not int:
        raise ConfigError("the question makes no sense; use one release of atoll at both ends")
    return (which if which is None else which[:200]), min(max(logs, 0), _LOG_LINES)


def answer_of(reply: bytes) -> list[Status]:
    """What a coordinator has answered. Raises StoreError where that makes no sense."""
    return list(from_json(Answered, reply, "the coordinator's answer").found)
