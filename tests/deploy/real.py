"""A coordinator and its sites in one process over a real port, for tests of what a site lets in and out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atoll.deploy.coordinator import coordinate, opened
from atoll.deploy.rules.gate import Gate
from atoll.deploy.rules.gated import Gated
from atoll.deploy.rules.judge import reading
from atoll.deploy.rules.policy import read_policy
from atoll.deploy.site import Site
from atoll.deploy.verify import records, verify
from atoll.errors import AtollError
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.execution import Outcome
from atoll.job.text import parse
from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.values import Limits
from atoll.store.keys import Keys
from atoll.store.runs import Store
from atoll.types import Answer, Tree

OFTEN = Limits(retry_s=0.01, ping_s=0.5)
JOB = """
atoll = 1
name = "figures"
rounds = 2
data = {name = "digits", clients = 3}
task = {name = "classification", model = {name = "mlp", inputs = 64, outputs = 10}}
local = {name = "sgd", lr = 0.1}
algorithm = "scaffold"
evaluation = {every = 0}
[sites]
north = ["client-0", "client-1"]
south = ["client-2"]
"""


@contextlib.contextmanager
def insecure(folder: Path, *sites: str, **options: Any) -> Iterator[tuple[Hub, dict[str, Link]]]:
    """A hub, and a link of each site to it, without TLS."""
    hub = Hub("127.0.0.1:0", None, folder / "hub", insecure=True, limits=OFTEN, **options)
    links = {site: Link(hub.address, None, site, folder / site / "link", insecure=True, limits=OFTEN) for site in sites}
    try:
        yield hub, links
    finally:
        for link in links.values():
            link.close()
        hub.stop(0.0)


class Tampered:
    """A link whose answers are other ones than the site has computed."""

    def __init__(self, line: Any, tampered: Callable[[Answer], Answer]) -> None:
        self._line, self._tampered = line, tampered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._line, name)

    def answer(self, job: str, answer: Answer) -> None:
        self._line.answer(job, self._tampered(answer))


class Run:
    """A job under way: the coordinator in this thread, each site in one of its own, ended with the job."""

    def __init__(self, folder: Path, text: str = JOB) -> None:
        self.folder, self.text, self.sites = folder, text, dict[str, threading.Thread]()
        self.said: list[str] = []
        self._over = threading.Event()

    def join(
        self,
        site: str,
        line: Any,
        policy: str | None = None,
        keys: Keys | None = None,
        own: str | None = None,
        tampered: Callable[[Answer], Answer] | None = None,
    ) -> None:
        """A site begins, behind a policy where there is one. `tampered`: what its own code does to each answer."""
        data, rules = None if own is None else parse(own), None if policy is None else read_policy(f"site_policy = 1\n{policy}")
        gated = None if rules is None else Gated(line, Gate(self.folder / site, rules, "university"), data)
        within: Any = Tampered(gated or line, tampered) if tampered else gated or line
        here = Site(
            within, self.folder / site, data, lambda text, **_: self.said.append(text), keys, gated.built if gated else None
        )

        def serve() -> None:
            with reading(rules):
                here.serve(self._over.is_set, 0.05)

        self.sites[site] = threading.Thread(target=serve, daemon=True)
        self.sites[site].start()

    def carried_out(self, hub: Hub, patience_s: float = 300.0, **how: Any) -> Outcome:
        """The whole job, and the end of the sites; `AssertionError` where one of them has died."""
        document = parse(self.text)
        job = check(document)
        try:
            with Store(self.folder / "runs") as store, opened(store, "figures", document.values, job) as run:
                return coordinate(hub, job, document.values, run, wait=self._alive, patience_s=patience_s, **how)
        finally:
            self._over.set()
            for site in self.sites.values():
                site.join(30)

    def _alive(self) -> None:
        assert all(site.is_alive() for site in self.sites.values()), f"a site has ended: {self.said}"


def simulated(text: str = JOB) -> Tree:
    """The parameters that a simulation ends with."""
    job = check(parse(text))
    return build(job).run(job.rounds).params


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def logged(folder: Path, *events: str) -> list[dict[str, Any]]:
    """The records of a site's log, which is whole."""
    assert verify(folder / "audit.jsonl").findings == ()
    return [record for record in records(folder / "audit.jsonl") if not events or record["event"] in events]


def told(call: Callable[[], object]) -> str:
    """The sentence of the error that it raises."""
    try:
        call()
    except AtollError as error:
        return str(error)
    raise AssertionError("nothing was raised")
