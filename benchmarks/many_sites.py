"""200 sites on one coordinator: rounds a minute, how long a word takes to a site and back, and that nobody's answer is lost.

The coordinator is `atoll.deploy`'s own: a job, the remote engine, the journal, the runs database. A site is a forked process
with a real link and its spool on the disk, whose training is to send the model back at once. A word there and back: from the
moment at which the coordinator offers a site its work until it hears that the site has begun with it, while all sites are
offered theirs, or send their answers.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from ends import Peak, cpu_s, end, fork, hub_at, link_to, told
from results import publish, verdict

from atoll.deploy.coordinator import coordinate, opened
from atoll.job.check import check
from atoll.job.text import parse
from atoll.remote.desk import place_from
from atoll.remote.values import Closed, Invited, Offered, place_of
from atoll.store.runs import Store
from atoll.types import Event, Tree, Update

JOB = """
atoll = 1
seed = 3
rounds = {rounds}

[data]
name = "synthetic"
clients = {sites}

[task]
name = "classification"
model = {{ name = "mlp", inputs = 60, hidden = [{hidden}], outputs = 10 }}

[local]
name = "sgd"
lr = 0.1

[algorithm]
name = "fedavg"

[evaluation]
every = 0

[sites]
{names}
"""
WARM = 2  # rounds that are not counted


def job_text(sites: int, rounds: int, hidden: int) -> str:
    names = "\n".join(f'site{i:03} = ["client-{i:03}"]' for i in range(sites))
    return JOB.format(sites=sites, rounds=rounds, hidden=hidden, names=names)


class Heard:
    """A sink: how many answers each round had."""

    def __init__(self) -> None:
        self.heard, self.lost = list[int](), 0

    def emit(self, event: Event) -> None:
        if event.kind == "reduced":
            self.heard.append(int(event.metrics["heard"]))
            self.lost += int(event.metrics["lost"])


def coordinator(line: Connection, folder: Path, text: str) -> None:
    document = parse(text)
    job, sink, ends = check(document), Heard(), list[tuple[float, float]]()
    offered, words = dict[Any, float](), list[float]()
    with hub_at(folder / "hub", None) as hub, Store(folder / "runs") as store:
        _timed(hub, offered, words)
        line.send(hub.address)

        def each_round(number: int, params: Tree) -> None:
            ends.append((time.perf_counter(), cpu_s()))
            if number == WARM:
                words.clear()
                line.send("warm")

        with opened(store, "many", document.values, job) as run:
            coordinate(hub, job, document.values, run, [sink], each_round=each_round, data="none")
        assert not sink.lost
        line.send((ends[WARM - 1 :], words, sink.heard))
        time.sleep(1.0)


def _timed(hub: Any, offered: dict[Any, float], words: list[float]) -> None:
    """Note when each offer is said, and when its site is first heard to be at it."""
    offer, heard = hub._offer, hub._floor.heard

    def offering(desk: Any, assignment: Any, blob: Any) -> None:
        offered[place_of(assignment)] = time.perf_counter()
        offer(desk, assignment, blob)

    def hearing(session: Any, message: Any) -> None:
        if message.WhichOneof("said") == "progress":
            began_s = offered.pop(place_from(message.progress.place), None)
            if began_s is not None:
                words.append(time.perf_counter() - began_s)
        heard(session, message)

    hub._offer, hub._floor.heard = offering, hearing


def site(line: Connection, address: str, folder: Path, name: str) -> None:
    with link_to(address, folder, name, None) as link:
        for event in link.events(600.0):
            if isinstance(event, Invited):
                link.consent(event.job, True)
            elif isinstance(event, Offered):
                round, client, work, tree, *_ = event.assignment
                link.answer(event.job, Update(round, client, work, tree, 1.0, {"loss": 1.0}))
            elif isinstance(event, Closed):
                break


def measure(folder: Path, sites: int, rounds: int, hidden: int) -> dict[str, Any]:
    hub = fork(coordinator, folder, job_text(sites, rounds + WARM, hidden))
    address = told(hub)
    links = [fork(site, address, folder / f"site{i:03}", f"site{i:03}") for i in range(sites)]
    assert told(hub) == "warm"
    peak = Peak(hub.process.pid)
    ends, words, heard = told(hub, 3600.0)
    grown_mib, held_mib = peak.grown_mib, peak.most_mib
    end(hub, *links)
    seconds = statistics.median(b[0] - a[0] for a, b in itertools.pairwise(ends))
    lost = sites * len(heard) - sum(heard)
    return {
        "sites": sites,
        "rounds": rounds,
        "numbers": 60 * hidden + hidden + hidden * 10 + 10,
        "s a round": seconds,
        "rounds a minute": 60 / seconds,
        "coordinator CPU s a round": (ends[-1][1] - ends[0][1]) / rounds,
        "word p50 ms": 1e3 * statistics.median(words),
        "word p99 ms": 1e3 * statistics.quantiles(words, n=100)[98],
        "answers": sum(heard),
        "lost": f"{lost}: {verdict(lost, at_most=0)}",
        "coordinator MiB": round(held_mib),
        "grown MiB": round(grown_mib, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=32, help="of the model's one hidden layer")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 5 sites, 3 rounds")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    counts, rounds = ([5], 3) if asked.quick else (asked.sites, asked.rounds)
    rows = []
    for sites in counts:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(
                measure(
                    Path(folder),
                    sites,
                    rounds,
                    asked.hidden,
                )
            )
    note = "MiB: RssAnon of the coordinator after two rounds that are not counted; loopback"
    publish("many_sites_quick" if asked.quick else "many_sites", rows, note)


if __name__ == "__main__":
    main()
