"""What a coordinator and a site count, in the format of Prometheus.

By job, and never by client or site: so the number of series is bounded, and a scrape tells nobody who takes part. A site's have
no jobs either, since the names of those are for the coordinator to choose.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import atoll
from atoll.errors import RemoteError, missing_extra
from atoll.remote.values import Doing
from atoll.types import HELD_OUT, Event

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from atoll.remote.hub import Hub
    from atoll.remote.link import Link

FAILURES = ("error", "not_finite", "no_data", "lost", "refused", "expired", "invalid")
ROUND_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
MOVING: Mapping[Doing, str] = {"fetching": "down", "pushing": "up"}  # as a site sees it


class OfCoordinator:
    """The numbers of a coordinator's jobs. A job's sink counts as it goes; what the hub knows is read at each scrape."""

    def __init__(self, hub: Hub, folder: Path, runs: Mapping[str, str], draining: Callable[[], bool]) -> None:
        """`runs`: by job that is not over, its run. Raises MissingExtra without prometheus_client."""
        prometheus = _prometheus()
        self._registry, self.kind = _registry(), prometheus.CONTENT_TYPE_LATEST
        self._hub, self._folder, self._runs, self._draining = hub, folder, runs, draining

        def gauge(name: str, told: str, *labels: str) -> Any:
            return prometheus.Gauge(f"atoll_{name}", told, labels, registry=self._registry)

        def counter(name: str, told: str, *labels: str) -> Any:
            return prometheus.Counter(f"atoll_{name}_total", told, labels, registry=self._registry)

        self._rounds = counter("rounds", "Rounds closed by this process.", "job")
        self._updates = counter("updates", "Updates accepted from clients.", "job")
        self._late = counter("late_updates", "Answers that came after their round and were dropped.", "job")
        self._failures = counter("failures", "Clients that did not answer, by kind of failure.", "job", "kind")
        self._bytes = counter("bytes", "Bytes of the frames of accepted answers and of what they answer.", "job", "direction")
        told = "Seconds from one round's end to the next one's, waiting for sites included."
        self._seconds = prometheus.Histogram("atoll_round_seconds", told, ["job"], buckets=ROUND_S, registry=self._registry)
        self._done = gauge("rounds_done", "Rounds done, those of earlier processes included.", "job")
        self._planned = gauge("rounds_planned", "Rounds that the job has.", "job")
        self._last = gauge("last_progress_timestamp_seconds", "When the job last accepted an answer or closed a round.", "job")
        self._clients = gauge("clients", "Clients of the job by what they are doing.", "job", "doing")
        self._transfers = gauge("transfers", "Transfers under way, down to sites and up from them.", "job", "direction")
        self._left = gauge("transfer_left_bytes", "Bytes that the transfers under way have still to carry.", "job", "direction")
        self._sites = gauge("sites_online", "Sites that have a session.")
        self._drains = gauge("draining", "1 while the process drains: no new round begins.")
        self._free = gauge("disk_free_bytes", "Free bytes where models and updates on their way are kept.")

    def sink(self, job: str, done: int, rounds: int) -> JobSink:
        """What counts one job, of which so many rounds are done."""
        self._done.labels(job).set(done)
        self._planned.labels(job).set(rounds)
        self._last.labels(job).set(time.time())
        for kind in (*FAILURES, "other"):
            self._failures.labels(job, kind)  # at 0 from the beginning, so that the first failure is a rise
        for counted in (self._rounds, self._updates, self._late, self._seconds):
            counted.labels(job)
        return JobSink(self, job)

    def count(self, job: str, event: Event) -> None:
        """One event, of which the round's seconds are not known here."""
        if event.client is not None and event.client.startswith(HELD_OUT):
            return
        if event.kind == "update":
            self._updates.labels(job).inc()
        elif event.kind == "late":
            self._late.labels(job).inc()
        elif event.kind == "failure":
            kind = event.text.partition(":")[0]
            self._failures.labels(job, kind if kind in FAILURES else "other").inc()
        elif event.kind == "round":
            self._rounds.labels(job).inc()
            self._done.labels(job).set(event.round + 1)
        if event.kind in ("update", "round"):
            self._last.labels(job).set(time.time())
        for direction in ("down", "up"):
            self._bytes.labels(job, direction).inc(event.metrics.get(f"bytes_{direction}", 0.0))

    def took(self, job: str, seconds: float) -> None:
        """A whole round took so long."""
        self._seconds.labels(job).observe(seconds)

    def text(self) -> bytes:
        """All of it, as it is scraped."""
        self._sites.set(len(self._hub.sites()))
        self._drains.set(self._draining())
        self._free.set(shutil.disk_usage(self._folder).free)
        for job, run in list(self._runs.items()):
            self._look(job, run)
        return bytes(_prometheus().generate_latest(self._registry))

    def _look(self, job: str, run: str) -> None:
        try:
            at = list(self._hub.progress(run).values())
        except RemoteError:
            at = []  # not open yet
        doing = Counter(each.doing for each in at)
        for each in get_args(Doing):
            self._clients.labels(job, each).set(doing[each])
        for moving, direction in MOVING.items():
            left = [each.total - each.done for each in at if each.doing == moving]
            self._transfers.labels(job, direction).set(len(left))
            self._left.labels(job, direction).set(sum(left))


class JobSink:
    """Counts the events of one job, and how long its rounds take by the clock that they tell."""

    def __init__(self, numbers: OfCoordinator, job: str) -> None:
        self._numbers, self._job = numbers, job
        self._before: tuple[int, float] | None = (-1, 0.0)  # the round that closed last, and the clock then

    def emit(self, event: Event) -> None:
        """Count it. A round that a restart cut in two has no time of its own, and is left out of the seconds."""
        self._numbers.count(self._job, event)
        if event.kind == "round":
            clock_s = event.metrics.get("clock_s", 0.0)
            if self._before is not None and self._before[0] == event.round - 1:
                self._numbers.took(self._job, clock_s - self._before[1])
            self._before = event.round, clock_s


class OfSite:
    """The numbers of a site, for its own operator."""

    def __init__(self, link: Link, folder: Path, draining: Callable[[], bool]) -> None:
        """Raises MissingExtra without prometheus_client."""
        prometheus = _prometheus()
        self._registry, self.kind = _registry(), prometheus.CONTENT_TYPE_LATEST
        self._link, self._folder, self._draining = link, folder, draining
        mine: dict[str, Any] = {"registry": self._registry}
        self._answers = prometheus.Counter("atoll_site_answers_total", "Answers given, by what they are.", ["kind"], **mine)
        for kind in ("update", "failure"):
            self._answers.labels(kind)
        told = "Seconds from taking up a piece of work to its answer."
        self._seconds = prometheus.Histogram("atoll_site_work_seconds", told, buckets=ROUND_S, **mine)
        self._online = prometheus.Gauge("atoll_site_connected", "1 while there is a session with the coordinator.", **mine)
        self._outbox = prometheus.Gauge("atoll_site_outbox", "Answers that the coordinator has not settled.", **mine)
        self._drains = prometheus.Gauge("atoll_draining", "1 while the process drains: no new work is begun.", **mine)
        self._free = prometheus.Gauge("atoll_disk_free_bytes", "Free bytes where the site keeps its memory and outbox.", **mine)

    def answered(self, kind: str, seconds: float | None) -> None:
        """An answer was given; `seconds`: of its work, where that was begun here."""
        self._answers.labels(kind).inc()
        if seconds is not None:
            self._seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it, as it is scraped."""
        self._online.set(self._link.online)
        self._outbox.set(len(self._link.outbox()))
        self._drains.set(self._draining())
        self._free.set(shutil.disk_usage(self._folder).free)
        return bytes(_prometheus().generate_latest(self._registry))


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise missing_extra("prometheus_client", "ops", "metrics") from None
    return prometheus_client


def _registry() -> CollectorRegistry:
    """A registry with what every process tells: its version, memory, processor time and open files."""
    prometheus = _prometheus()
    prometheus.disable_created_metrics()  # a second series for each, which Prometheus does not use
    made: CollectorRegistry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=made)
    prometheus.GCCollector(registry=made)
    told = {"version": atoll.__version__, "python": platform.python_version()}
    prometheus.Info("atoll_build", "The version of Atoll.", registry=made).info(told)
    return made
