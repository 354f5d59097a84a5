"""A run in a sentence and in a row of figures; what came of it, before how."""

from __future__ import annotations

import math
from typing import NamedTuple

from atoll.report.facts import Facts, higher_is_better
from atoll.report.lines import label
from atoll.report.units import count, duration, figure, grams, joules, size
from atoll.store.record import Record

STATUS = {  # what the chip says, and its tone
    "created": ("Not started", "quiet"),
    "running": ("Running", "busy"),
    "interrupted": ("Interrupted", "warn"),
    "failed": ("Failed", "bad"),
    "finished": ("Finished", "good"),
}


class Change(NamedTuple):
    """A metric from the first time it was measured to the last."""

    name: str
    work: str
    first: float | None  # None: measured once
    last: float
    best: float
    round: int  # of the last value


class Tile(NamedTuple):
    """One figure of the row under the title."""

    name: str
    figure: str
    note: str = ""


def changes(facts: Facts) -> list[Change]:
    """Every metric of the whole federation that was ever finite, by the most trusted work; loss first."""
    found = []
    for name in facts.metrics:
        work, series = facts.judged(name)
        finite = [at for at in series if math.isfinite(at.value)]
        if finite:
            values = [at.value for at in finite]
            best = max(values) if higher_is_better(name) else min(values)
            first = finite[0].value if len(finite) > 1 else None
            found.append(Change(name, work, first, finite[-1].value, best, finite[-1].round))
    return found


def sentence(record: Record, facts: Facts) -> str:
    """What came of the run, in one sentence for somebody who reads no further."""
    parts = []
    for change in changes(facts)[:2]:
        what = {"evaluate": "held-out ", "train": "training "}.get(change.work, "") + label(change.name.replace("_", " "))
        if change.first is None:
            parts.append(f"{what} {figure(change.name, change.last)}")
        else:
            parts.append(f"{what} from {figure(change.name, change.first)} to {figure(change.name, change.last)}")
    done = facts.rounds
    of = "" if done == record.rounds else f" of {record.rounds:,}"
    parts.append(f"{done:,}{of} {'round' if record.rounds == 1 else 'rounds'}")
    if facts.elapsed_s:
        parts.append(duration(facts.elapsed_s))
    down, up = sum(facts.bytes_down.values()), sum(facts.bytes_up.values())
    if down or up:
        parts.append(f"{size(down)} down, {size(up)} up")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "."


def tiles(record: Record, facts: Facts) -> list[Tile]:
    """The figures that a reader looks for first."""
    found = []
    for change in changes(facts)[:3]:
        from_ = f"from {figure(change.name, change.first)}" if change.first is not None else f"in round {change.round}"
        found.append(Tile(label(_heading(change), 28), figure(change.name, change.last), from_))
    found.append(Tile("Rounds", f"{facts.rounds:,}", f"of {record.rounds:,} asked for"))
    if clients := facts.clients:
        failures = len(record.failures)
        found.append(Tile("Clients", f"{len(clients):,}", count(failures, "failure") if failures else "none failed"))
    if facts.elapsed_s:
        a_round = f"{duration(facts.elapsed_s / facts.rounds)} a round" if facts.rounds else ""
        found.append(Tile("Time", duration(facts.elapsed_s), a_round))
    if facts.simulated_s:
        found.append(Tile("Simulated time", duration(max(facts.simulated_s.values())), "on the fleet's clock"))
        energy_j, co2e_g = sum(facts.energy_j.values()), sum(facts.co2e_g.values())
        found.append(Tile("Simulated energy", joules(energy_j), f"{grams(co2e_g)} CO2e, of clients that answered"))
    down, up = sum(facts.bytes_down.values()), sum(facts.bytes_up.values())
    if down or up:
        found.append(Tile("Sent", size(down + up), f"{size(down)} down, {size(up)} up"))
    return found


def ending(record: Record, facts: Facts) -> str:
    """Why a run that isn't finished stands where it stands, and what to do; "" for a finished one."""
    at = f"after {facts.rounds:,} of {record.rounds:,} rounds"
    if record.status == "failed":
        return f"Stopped {at}: {record.error or 'no reason was recorded'}"
    if record.status == "interrupted":
        return f"Stopped {at}. `atoll resume {record.id}` goes on from the last checkpoint, to the same bits."
    if record.status == "running":
        return f"Still running {at}; this page shows the state at the time it was written."
    return "Not started yet." if record.status == "created" else ""


def _heading(change: Change) -> str:
    name = change.name.replace("_", " ")
    return {"evaluate": "Held-out ", "train": "Training "}.get(change.work, "") + (
        name if change.work in {"evaluate", "train"} else name[:1].upper() + name[1:]
    )
