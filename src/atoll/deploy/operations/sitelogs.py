"""What sites let the coordinator see of their logs: the last lines of each, in a file a site in the run's folder."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from atoll.deploy.operations.status import Said, from_json, shown, to_json
from atoll.errors import StoreError
from atoll.store import files

FOLDER = "site-logs"  # in the run's folder
MOST_BYTES = 1 << 16  # of a site: when a file is larger, its older half goes
_WAITING = 100  # lines of a site between two writes; what comes faster is lost, the oldest first


class SiteLogs:
    """Lines from the hub's threads, held until the watch over their job writes them: no site makes the hub wait for a disk.

    >>> import tempfile
    >>> logs, folder = SiteLogs(), Path(tempfile.mkdtemp())
    >>> logs.heard("north", "hearts-1", "taking part")
    >>> logs.keep("hearts-1", folder)
    >>> [(each.site, each.line) for each in last(folder, 10)]
    [('north', 'taking part')]
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: dict[str, dict[str, deque[Said]]] = {}

    def heard(self, site: str, job: str, line: str) -> None:
        """As `Hub` calls it, for a member of an open job."""
        with self._guard:
            waiting = self._waiting.setdefault(job, defaultdict(lambda: deque(maxlen=_WAITING)))
            waiting[site].append(Said(round(time.time(), 3), site, shown(line)))

    def keep(self, job: str, folder: Path) -> None:
        """Write what has come for a job. Raises StoreError."""
        with self._guard:
            waiting = self._waiting.pop(job, {})
        for site, lines in waiting.items():
            path = files.make_folder(folder / FOLDER) / f"{quote(site, safe='')[:150]}.jsonl"
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write("".join(to_json(each) + "\n" for each in lines))
                if path.stat().st_size > MOST_BYTES:
                    _halve(path)
            except OSError as error:
                raise files.trouble(error, path) from error


def last(folder: Path, lines: int) -> tuple[Said, ...]:
    """The last lines of each site, in the order of time. Raises StoreError where they can't be read."""
    found = list[Said]()
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        found += list(_read(path))[-lines:]
    return tuple(sorted(found, key=lambda each: each.at))


def _read(path: Path) -> Iterator[Said]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise files.trouble(error, path) from error
    for line in text.splitlines():
        try:
            yield from_json(Said, line, str(path))
        except StoreError:
            continue  # torn by a kill; it is a line of a log, and no more


def _halve(path: Path) -> None:
    """Drop the older half, whole lines."""
    kept = path.read_bytes()[-MOST_BYTES // 2 :].partition(b"\n")[2]
    with files.replacing(path, len(kept)) as file:
        file.write(kept)
