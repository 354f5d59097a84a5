"""A coordinator's watch over one of its jobs: status.json in the run's folder, and what the sites have logged beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from atoll.deploy.operations.sitelogs import SiteLogs
from atoll.deploy.operations.status import BEAT_S, FILE, Live, Rules, Trouble, gathered, rules_of, shown, to_json
from atoll.errors import AtollError, RemoteError
from atoll.job.build import make
from atoll.store import files
from atoll.types import HELD_OUT, Event

if TYPE_CHECKING:
    from atoll.job.schema import Job
    from atoll.remote.hub import Hub
    from atoll.store.run import Run

LOOK_S = 1.0  # between two looks, and so between two writes
_SHARE = 20.0  # looking takes a twentieth of a processor at most, however many clients there are
_MOST_LOST = 50


class Watch:
    """A sink of a job's events, and a thread that looks at the hub; used in a `with` around the job.

    It never ends the job: what goes wrong here is told once through `complain`, and a reader sees that the file grows old.
    """

    def __init__(
        self,
        hub: Hub,
        run: str,
        folder: Path,
        rules: Rules,
        rounds_done: int = 0,
        logs: SiteLogs | None = None,
        complain: Callable[[str], None] = lambda _: None,
    ) -> None:
        now = time.time()
        self._hub, self._run, self._folder, self._logs, self._complain = hub, run, folder, logs, complain
        self._guard = threading.Lock()
        self._live = Live(now, now, "beginning", True, rounds_done, now, None, "", rules, first=rounds_done)
        self._heard, self._trained = set[str](), False
        self._written, self._last = 0.0, self._live
        self._troubled, self._over = "", threading.Event()
        self._thread = threading.Thread(target=self._forever, name=f"atoll-watch-{run}", daemon=True)

    def __enter__(self) -> Self:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10.0)
        self.look()

    def saying(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """The same, heard here too: what is done before and after the rounds."""

        def both(text: str) -> None:
            with self._guard:
                begins = text.startswith("waiting for ") and not self._trained
                own = text != "training" and not begins
                self._trained = self._trained or text == "training"
                self._live = self._live._replace(doing=text if own else "training", own=own, opened=time.time())
            say(text)

        return both

    def emit(self, event: Event) -> None:
        """As a sink: who has answered, who has failed, which round it is."""
        with self._guard:
            live = self._live
            if event.kind in ("update", "failure") and (event.client or "").startswith(HELD_OUT):
                live = live._replace(own=True)
            elif event.kind == "update":
                self._heard.add(event.client or "")
            elif event.kind == "failure":
                lost = Trouble(event.round, event.client or "", event.work, shown(event.text))
                live = live._replace(lost=(*live.lost, lost)[-_MOST_LOST:])
            elif event.kind == "reduced":
                self._heard.clear()
                live = live._replace(own=True, asked=None)
            elif event.kind == "round":
                self._heard.clear()
                live = live._replace(own=False, asked=None, round=event.round + 1, opened=time.time(), lost=())
            self._live = live

    def look(self) -> None:
        """Look once, and write what has changed, or that nothing has."""
        try:
            live = self._seen(time.time())
            if live._replace(at=0.0) != self._last._replace(at=0.0) or live.at - self._written >= BEAT_S:
                text = to_json(live).encode()
                with files.replacing(self._folder / FILE, len(text)) as file:
                    file.write(text)
                self._written, self._last = live.at, live
            if self._logs is not None:
                self._logs.keep(self._run, self._folder)
            self._troubled = ""
        except AtollError as error:  # a full disk may pass
            self._trouble(str(error))
        except Exception as error:  # a defect here ends no job, and is not passed over in silence
            self._trouble(f"{type(error).__name__}: {error}")

    def _seen(self, now: float) -> Live:
        with self._guard:
            heard = frozenset(self._heard)
        try:
            sites, clients = gathered(self._hub, self._run, heard, now)
        except RemoteError:  # not opened yet, or closed by now: what was seen last stays
            sites, clients = self._live.sites, self._live.clients
        with self._guard:
            work = next((each.work for each in clients if each.round is not None), "")
            live = self._live._replace(at=now, sites=sites, clients=clients)
            if work:
                live = live._replace(own=False, work=work, asked=live.asked if live.asked is not None else now)
            self._live = live
            return live

    def _trouble(self, text: str) -> None:
        if text != self._troubled:
            self._complain(f"status.json is not kept: {text}")
            self._troubled = text

    def _forever(self) -> None:
        wait_s = LOOK_S
        while not self._over.wait(wait_s):
            began_s = time.monotonic()
            self.look()
            wait_s = max(LOOK_S, _SHARE * (time.monotonic() - began_s))


def watching(
    hub: Hub,
    run: Run,
    job: Job,
    rounds_done: int,
    patience_s: float,
    logs: SiteLogs,
    complain: Callable[[str], None],
    start_with: int | None = None,
) -> Watch:
    """The watch over a run of a job, of which so many rounds are done."""
    rules = rules_of(make("policy", job.policy), patience_s, start_with)
    return Watch(hub, run.id, run.folder, rules, rounds_done, logs, complain)
