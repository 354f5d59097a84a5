"""A model to a site and an update back over loopback, beside a bare gRPC stream; the coordinator's CPU and memory by sites.

Speed: two forked processes, from `hub.offer` to the answer read, interleaved with the same bytes in 1 MiB messages over one
bare stream between two processes like them: over grpc.aio, which Atoll uses, and over gRPC's threads, each with its own settings
or Atoll's, whichever were faster in a first trial. Memory: what a process holds of its own (RssAnon) above what it held when its
sites had come, while it folds the updates of each round into a mean; the mapped files that trees are read from are page cache.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import torch
from ends import JOB, Peak, Trust, cpu_s, end, fork, hub_at, link_to, told, trusted
from results import publish, verdict

from atoll.aggregators.mean import mean
from atoll.remote.channel import CHANNEL_OPTIONS, SERVER_OPTIONS, server_credentials
from atoll.remote.values import Closed, Invited, Offered
from atoll.types import Assignment, ClientId, Update

MESSAGE_BYTES = 1 << 20
SHARE, FLAT_MIB, BEYOND_MIB = 0.6, 64.0, 64.0
WARM_BYTES = 4 << 20  # goes both ways first, unmeasured
PATH = "/bare/Both"
UNLIMITED = [("grpc.max_receive_message_length", -1)]


def model(size_bytes: int) -> dict[str, torch.Tensor]:
    rows = max(size_bytes // 4_000_000, 1)
    return {f"w{i}": torch.full((size_bytes // 4 // rows,), float(i)) for i in range(rows)}


def atoll_hub(line: Connection, folder: Path, trust: Trust | None, size_bytes: int) -> None:
    with hub_at(folder, trust) as hub:
        line.send(hub.address)
        hub.open(JOB, {ClientId("site"): "site"})
        for round, size in enumerate((WARM_BYTES, size_bytes)):
            tree, began_s, began_cpu_s = model(size), time.perf_counter(), cpu_s()
            hub.offer(JOB, [Assignment(round, ClientId("site"), "train", tree, round)])
            answer = next(hub.answers(JOB, 300.0))
            assert isinstance(answer, Update), answer
            total = sum(float(x[::1024].sum()) for x in answer.tree.values())  # every page of it
            spent = time.perf_counter() - began_s, cpu_s() - began_cpu_s
            assert total == sum(float(x[::1024].sum()) for x in tree.values())
            hub.acknowledge(JOB, answer)
            del answer
        line.send(spent)
        hub.close(JOB)
        time.sleep(0.3)


def atoll_site(line: Connection, address: str, folder: Path, name: str, trust: Trust | None) -> None:
    """Answers with what it got."""
    with link_to(address, folder, name, trust) as link:
        for event in link.events(300.0):
            if isinstance(event, Invited):
                link.consent(event.job, True)
            elif isinstance(event, Offered):
                round, client, work, tree, *_ = event.assignment
                link.answer(event.job, Update(round, client, work, tree, 1.0, {}))
                del tree
            elif isinstance(event, Closed):
                break
            del event


def pieces(data: memoryview) -> Iterator[bytes]:
    for at in range(0, len(data), MESSAGE_BYTES):
        yield bytes(data[at : at + MESSAGE_BYTES])


def bare_hub(line: Connection, trust: Trust | None, size_bytes: int, aio: bool, tuned: bool) -> None:
    data = torch.zeros(size_bytes, dtype=torch.uint8).numpy().data
    options = SERVER_OPTIONS if tuned else UNLIMITED
    spent: list[tuple[float, float]] = []

    async def both(requests: AsyncIterator[bytes], context: Any) -> None:
        await context.read()
        for size in (WARM_BYTES, size_bytes):
            began_s, began_cpu_s, left = time.perf_counter(), cpu_s(), size
            for piece in pieces(data[:size]):
                await context.write(piece)
            while left:
                left -= len(await context.read())
            spent.append((time.perf_counter() - began_s, cpu_s() - began_cpu_s))

    def both_in_threads(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        next(requests)
        for size in (WARM_BYTES, size_bytes):
            began_s, began_cpu_s, left = time.perf_counter(), cpu_s(), size
            yield from pieces(data[:size])
            while left:
                left -= len(next(requests))
            spent.append((time.perf_counter() - began_s, cpu_s() - began_cpu_s))

    def added(server: Any) -> None:
        handler = grpc.stream_stream_rpc_method_handler(both if aio else both_in_threads)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", {"Both": handler}),))
        at = "localhost:0"
        port = server.add_secure_port(at, server_credentials(lambda: trust.hub)) if trust else server.add_insecure_port(at)
        line.send(f"localhost:{port}")

    async def served() -> None:
        server = grpc.aio.server(options=options)
        added(server)
        await server.start()
        while len(spent) < 2:
            await asyncio.sleep(0.05)
        await server.stop(0.5)

    if aio:
        asyncio.run(served())
    else:
        server = grpc.server(ThreadPoolExecutor(2), options=options)
        added(server)
        server.start()
        while len(spent) < 2:
            time.sleep(0.05)
        server.stop(0.5).wait()
    line.send(spent[-1])


def bare_site(line: Connection, address: str, trust: Trust | None, size_bytes: int, aio: bool, tuned: bool) -> None:
    options, module = (CHANNEL_OPTIONS if tuned else UNLIMITED), (grpc.aio if aio else grpc)

    def opened() -> Any:
        if not trust:
            return module.insecure_channel(address, options)
        tls = grpc.ssl_channel_credentials(trust.site.authority, trust.site.key, trust.site.certificate)
        return module.secure_channel(address, tls, options)

    async def back() -> None:
        channel = opened()
        call = channel.stream_stream(PATH)()
        await call.write(b"here")
        for size in (WARM_BYTES, size_bytes):
            got, left = [], size
            while left:
                got.append(await call.read())
                left -= len(got[-1])
            for piece in got:
                await call.write(piece)
        await call.done_writing()
        await call.code()
        await channel.close()

    def back_in_threads() -> None:
        ready = queue.SimpleQueue[list[bytes]]()

        def sent() -> Iterator[bytes]:
            yield b"here"
            for _ in range(2):
                yield from ready.get()

        call = opened().stream_stream(PATH)(sent())
        for size in (WARM_BYTES, size_bytes):
            got, left = [], size
            while left:
                got.append(next(call))
                left -= len(got[-1])
            ready.put(got)
        list(call)

    if aio:
        asyncio.run(back())
    else:
        back_in_threads()


def pair(hub: tuple[Any, ...], site: Callable[[str], tuple[Any, ...]]) -> tuple[float, float]:
    """Seconds there and back, and the coordinator's CPU seconds, of one pair of processes."""
    coordinator = fork(*hub)
    other = fork(*site(told(coordinator)))
    spent: tuple[float, float] = told(coordinator)
    end(coordinator, other)
    return spent


def of_atoll(folder: Path, trust: Trust | None, size_bytes: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        here = Path(name)
        return pair(
            (atoll_hub, here / "hub", trust, size_bytes),
            lambda address: (atoll_site, address, here / "site", "site", trust),
        )


def of_bare(trust: Trust | None, size_bytes: int, aio: bool, tuned: bool) -> tuple[float, float]:
    return pair((bare_hub, trust, size_bytes, aio, tuned), lambda address: (bare_site, address, trust, size_bytes, aio, tuned))


def speed(folder: Path, size_bytes: int, repeats: int) -> list[dict[str, Any]]:
    """Atoll, grpc.aio and gRPC's threads in turn, each bare one with its faster settings; the target is the faster of the two."""
    rows = []
    for trust in (None, trusted(folder)):
        trial = {(aio, tuned): of_bare(trust, size_bytes, aio, tuned)[0] for aio in (True, False) for tuned in (False, True)}
        bare = [min(((aio, tuned) for tuned in (False, True)), key=trial.__getitem__) for aio in (True, False)]
        turns = [
            [of_atoll(folder, trust, size_bytes), *(of_bare(trust, size_bytes, *how) for how in bare)] for _ in range(repeats)
        ]
        names = ["Atoll", *(f"{'grpc.aio' if aio else 'grpc, threads'}{', settings of Atoll' if t else ''}" for aio, t in bare)]
        shares = [statistics.median(turn[i][0] / turn[0][0] for turn in turns) for i in range(3)]
        for i, name in enumerate(names):
            row = {
                "TLS": "yes" if trust else "no",
                "": name,
                "MB each way": size_bytes / 1e6,
                "s": statistics.median(turn[i][0] for turn in turns),
                "coordinator CPU s": statistics.median(turn[i][1] for turn in turns),
                "Atoll of its throughput": round(shares[i], 3) if i else None,
                f"target: {SHARE:.0%} of the faster": verdict(shares[i], at_least=SHARE)
                if i and shares[i] == min(shares[1:])
                else "",
            }
            rows.append(row)
    return rows


def coordinator(line: Connection, folder: Path, sites: int, size_bytes: int, rounds: int) -> None:
    """Rounds of a mean over all sites; says when the sites are there, and what each round took."""
    names, params, reduce = [f"site{i:03}" for i in range(sites)], model(size_bytes), mean()
    with hub_at(folder, None) as hub:
        line.send(hub.address)
        hub.open(JOB, {ClientId(name): name for name in names})
        while len(hub.online(JOB)) < sites:
            hub.wait(JOB, 1.0)
        line.send("there")
        line.recv()
        spent = []
        for round in range(rounds):
            began_s, began_cpu_s, total, heard = time.perf_counter(), cpu_s(), reduce.init(), 0
            hub.offer(JOB, [Assignment(round, ClientId(name), "train", params, round) for name in names])
            for answer in hub.answers(JOB, 600.0):
                assert isinstance(answer, Update), answer
                total = reduce.add(total, answer)
                hub.acknowledge(JOB, answer)
                heard += 1
                del answer
            spent.append((time.perf_counter() - began_s, cpu_s() - began_cpu_s))
            assert heard == sites, f"{heard} of {sites} were heard"
            assert float(reduce.finish(total)["w0"][-1]) == 0.0
            del total
        line.send(spent)
        line.recv()
        hub.close(JOB)
        time.sleep(0.3)


def by_sites(folder: Path, sites: int, size_bytes: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        here = Path(name)
        hub = fork(coordinator, here / "hub", sites, size_bytes, rounds)
        address = told(hub)
        links = [fork(atoll_site, address, here / f"{i:03}", f"site{i:03}", None) for i in range(sites)]
        told(hub)
        peaks = Peak(hub.process.pid), Peak(links[0].process.pid)
        hub.line.send("begin")
        spent = told(hub)
        grown = [peak.grown_mib for peak in peaks]
        hub.line.send("end")
        end(hub, *links)
    return {
        "sites": sites,
        "MB each way": size_bytes / 1e6,
        "s a round": statistics.median(s for s, _ in spent),
        "coordinator CPU s a round": statistics.median(c for _, c in spent),
        "a site": statistics.median(c for _, c in spent) / sites,
        "coordinator MiB above floor": round(grown[0], 1),
        "site MiB above floor": round(grown[1], 1),
    }


def memory(folder: Path, counts: list[int], size_bytes: int, large_bytes: int, rounds: int) -> list[dict[str, Any]]:
    rows = [by_sites(folder, sites, size_bytes, rounds) for sites in counts]
    for row in rows:
        more = row["coordinator MiB above floor"] - rows[0]["coordinator MiB above floor"]
        row["target"] = f"{more:+.0f} MiB, flat within {FLAT_MIB:g}: {verdict(more, at_most=FLAT_MIB)}"
    large = by_sites(folder, 1, large_bytes, 1)
    most = max(large["coordinator MiB above floor"], large["site MiB above floor"])
    allowed = large_bytes / 2**20 + BEYOND_MIB
    large["target"] = f"one model and {BEYOND_MIB:g} MiB, {allowed:.0f}: {verdict(most, at_most=allowed)}"
    return [*rows, large]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--large-megabytes", type=float, default=1000.0, help="of the model of which one site is sent one")
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, default=None, help="for the spools: 250 MB a site and 3 GB; default: the temporary one"
    )
    parser.add_argument("--only", choices=["speed", "memory"])
    parser.add_argument("--quick", action="store_true", help="a smoke test: small models, few sites, one repeat")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size, large, repeats, sites = int(asked.megabytes * 1e6), int(asked.large_megabytes * 1e6), asked.repeats, asked.sites
    if asked.quick:
        size, large, repeats, sites = 8_000_000, 16_000_000, 1, [1, 3]
    name = "_quick" if asked.quick else ""
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        if asked.only != "memory":
            publish(f"transport{name}", speed(Path(folder), size, repeats), f"medians of {repeats} interleaved pairs, loopback")
        if asked.only != "speed":
            found = memory(Path(folder), sites, size, large, asked.rounds)
            publish(f"transport_memory{name}", found, "RssAnon above that with all sites there, one accumulator included")


if __name__ == "__main__":
    main()
