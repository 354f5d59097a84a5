"""A coordinator and two sites over lines of 20 Mbit/s, 80 ms and 1 % loss: time to a loss, and what a cut line repeats.

Real `atoll serve` and `atoll join` over mutual TLS, each in a network namespace (`wan_line`), with each congestion control
that the kernel has, since loss means little to one and much to another. In the first job the model goes as it is or
compressed both ways; the second sends one model down and one update up, and the line of one site is cut in the middle of
each: what it repeats is what arrived without a gap over its connections beyond what so arrived at the other site.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from machines import ATOLL, Machine, machines
from results import publish, verdict
from wan_line import Host, Lines, congestion_controls, missing

from atoll.identity import authority, credentials, enrolment, tokens
from atoll.remote.values import CHUNK_BYTES
from atoll.store.runs import Store

SITES = ("north", "south")
COORDINATOR, PORT = "10.77.0.1", 7433
HOSTS = (Host("hub", COORDINATOR), *(Host(site, f"10.77.0.{i}", 20.0, 40.0, 0.01) for i, site in enumerate(SITES, start=2)))
CONTROLS = ("bbr", "cubic")
TARGET_LOSS = 0.1
TIMEOUT_S = 1800.0
JOB = """
atoll = 1
seed = 1
rounds = {rounds}

[data]
name = "digits"
clients = 2

[task]
name = "classification"
model = {{ name = "mlp", inputs = 64, hidden = [{width}, {width}], outputs = 10 }}

[local]
name = "sgd"
lr = 0.1
batch_size = 32
epochs = 4

[algorithm]
name = "fedavg"

[sites]
north = ["client-0"]
south = ["client-1"]
"""
LINKS = {
    "float32": "",
    "ecsq both ways": '[[transforms]]\nname = "ecsq"\nstep = 1.0\n\n[broadcast]\nname = "ecsq"\nstep = 1.0\n',
}


class Scale(NamedTuple):
    """How large and how long."""

    width: int  # of the two hidden layers of the model that is trained to a loss
    rounds: int
    cut_width: int  # of those of the model that is on its way when the line is cut
    cut_s: float


WHOLE, QUICK = Scale(1000, 8, 1400, 30.0), Scale(200, 2, 1000, 3.0)


class Ran(NamedTuple):
    """A job that has ended."""

    began_s: float  # when both sites took part
    rounds_s: list[float]  # when each round's line came
    losses: list[float]
    bytes_up: float  # of frames, of all sites
    bytes_down: float


def parameters(width: int) -> int:
    """Of the model."""
    return 64 * width + width + width * width + width + width * 10 + 10


def certified(folder: Path) -> None:
    """An authority in `pki`, and an identity for each site."""
    made = authority.create(folder / "pki", "wan.example", [COORDINATOR])
    for site in SITES:
        request, token = credentials.prepare(folder / site / "identity", site), tokens.invite(made, site)
        answer = authority.pem(enrolment.enrol(made, token, request))
        credentials.accept(folder / site / "identity", site, answer, made.ca_pem, sha256=made.sha256)


def started(lines: Lines, folder: Path, text: str, into: list[Machine]) -> list[Machine]:
    """The coordinator of the job and its sites."""
    certified(folder)
    (folder / "job.toml").write_text(text)
    at = f"{COORDINATOR}:{PORT}"
    into.append(
        Machine(folder, [*lines.inside("hub"), *ATOLL, "serve", "job.toml", "--listen", at, "--runs", "runs", "--pki", "pki"])
    )
    into[0].wait_for("listening on", 120)
    for site in SITES:
        words = ["join", at, "--identity", "identity", "--folder", "kept", "--jobs", "1"]
        into.append(Machine(folder / site, [*lines.inside(site), *ATOLL, *words]))
    return into


def finished(folder: Path, hub: Machine, sites: Sequence[Machine], rounds: int) -> Ran:
    """Wait for its end. Raises RuntimeError where any process fails."""
    for each in (hub, *sites):
        if code := each.ended(TIMEOUT_S):
            raise RuntimeError(f"{each.process.args!r} ended with {code}:\n{each.told()}")
    with Store(folder / "runs") as store:
        record = store.record("last")
    sent = {name: sum(p.value for p in record.series if p.client and p.name == name) for name in ("bytes_up", "bytes_down")}
    return Ran(
        max(site.wait_for("taking part with", 1).came_s for site in sites),
        [hub.wait_for(f"round {number + 1}/{rounds} ", 1).came_s for number in range(rounds)],
        [value for _, value in record.global_series("evaluate", "loss")],
        sent["bytes_up"],
        sent["bytes_down"],
    )


def to_target(control: str, name: str, scale: Scale) -> dict[str, Any]:
    """One job over slow lines, until its rounds are over; the time of the first one at the target."""
    with tempfile.TemporaryDirectory() as place, Lines(HOSTS, control) as lines, machines() as processes:
        hub, *sites = started(lines, Path(place), JOB.format(rounds=scale.rounds, width=scale.width) + LINKS[name], processes)
        ran = finished(Path(place), hub, sites, scale.rounds)
        used = lines.congestion("hub")
        up, down = lines.carried("north")
    met = next((i for i, loss in enumerate(ran.losses) if loss <= TARGET_LOSS), None)
    ends = [ran.began_s, *ran.rounds_s]
    return {
        "congestion control": used,
        "model": name,
        "rounds to the loss": None if met is None else met + 1,
        "s to the loss": None if met is None else round(ends[met + 1] - ran.began_s, 1),
        "s a round": round((ends[-1] - ends[1]) / max(len(ends) - 2, 1), 2),
        "last loss": round(ran.losses[-1], 4),
        "frames up MB": round(ran.bytes_up / 1e6, 3),
        "frames down MB": round(ran.bytes_down / 1e6, 3),
        "north's line MB": round((up.packet_bytes + down.packet_bytes) / 1e6, 2),
        "lost there": up.dropped + down.dropped,
    }


def cut_in_two(control: str, scale: Scale) -> list[dict[str, Any]]:
    """One round; north's line is cut when two fifths of the model have come down, and again when as much of the update is up."""
    size_bytes, rows = 4 * parameters(scale.cut_width), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as place, Lines(HOSTS, control) as lines, machines() as processes:
        hub, *sites = started(lines, Path(place), JOB.format(rounds=1, width=scale.cut_width), processes)
        for way in (1, 0):  # down, then up
            deadline = time.monotonic() + TIMEOUT_S
            while lines.carried("north")[way].stream_bytes < 0.4 * size_bytes:
                if time.monotonic() > deadline or hub.process.poll() is not None:
                    raise RuntimeError(f"nothing moved on north's line:\n{hub.told()}")
                time.sleep(0.02)
            lines.cut("north")
            time.sleep(scale.cut_s)
            lines.mend("north")
        began = time.monotonic()
        finished(Path(place), hub, sites, 1)
        ended_s = time.monotonic() - began
        north, south = lines.carried("north"), lines.carried("south")
        used = lines.congestion("hub")
    for way, told in ((1, "model, down"), (0, "update, up")):
        repeated = north[way].stream_bytes - south[way].stream_bytes
        rows.append(
            {
                "congestion control": used,
                "cut": f"{scale.cut_s:g} s in the {told}",
                "MB": round(size_bytes / 1e6, 1),
                "arrived, uncut": south[way].stream_bytes,
                "arrived, cut": north[way].stream_bytes,
                "repeated": repeated,
                "connections": north[way].connections,
                "s to the end after the last cut": round(ended_s, 1),
                "target": f"<= {CHUNK_BYTES:,}",
                "": verdict(repeated, at_most=CHUNK_BYTES),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller model, two rounds, a cut of 3 s: does everything work?")
    parser.add_argument("--congestion", default=",".join(CONTROLS), help="controls to try, of those that the kernel has")
    given = parser.parse_args()
    if why := missing():
        print(f"SKIPPED: {why}", file=sys.stderr)
        return
    scale = QUICK if given.quick else WHOLE
    asked, allowed = given.congestion.split(","), congestion_controls()
    controls = [each for each in asked if each in allowed]
    for each in set(asked) - set(allowed):
        print(f"SKIPPED: {each} is not in /proc/sys/net/ipv4/tcp_allowed_congestion_control of this kernel", file=sys.stderr)
    quick = "_quick" if given.quick else ""
    note = f"two sites at {HOSTS[1].mbit:g} Mbit/s each way, {2 * HOSTS[1].delay_ms:g} ms, {HOSTS[1].loss:.0%} loss each way"
    rows = list[dict[str, Any]]()
    for control, name in product(controls, LINKS):
        rows.append(to_target(control, name, scale))
        print(rows[-1], file=sys.stderr)
    publish(f"wan{quick}", rows, f"{note}; {parameters(scale.width):,} parameters, to a held-out loss of {TARGET_LOSS}")
    publish(f"wan_cut{quick}", [row for control in controls for row in cut_in_two(control, scale)], note)


if __name__ == "__main__":
    main()
