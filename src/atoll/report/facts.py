"""What a record says, put in the order in which a report asks for it: one pass over the points, no drawing.

Rounds are shown as a person counts them: 0 is the evaluation before training, and what happened in the driver's
round r (counted from 0) belongs to round r + 1, because it is measured on, or makes, the model after r + 1 rounds.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from atoll.store.record import Incident, Record
from atoll.types import HELD_OUT

COSTS = frozenset(
    {"seconds", "bytes_down", "bytes_up", "examples", "steps", "age", "heard", "lost", "clients", "failures", "weight", "cohort"}
    | {"header_down", "header_up"}  # of the bytes, what is no tensor (`flight`)
    | {"saved_down", "saved_up"}  # by codecs (`flight`)
    | {"clock_s", "transfer_s", "wait_s", "energy_j", "co2e_g"}  # of a run in virtual time (`engines.virtual`)
)
JUDGING = ("evaluate", "baseline", "global", "personal", "finetune")  # works that do not make the model of the federation
AFTER = ("global", "finetune", "personal")  # once, after the last round: what fine-tuning at each client gives


class At(NamedTuple):
    """One value of a series: after how many rounds, and after how many seconds of running."""

    round: int
    value: float
    elapsed_s: float


Key = tuple[str, str]  # (work, name of the number)
Series = Sequence[At]


@dataclass(frozen=True, slots=True)
class Facts:
    """One run, by round and by client."""

    whole: Mapping[Key, Series]  # numbers of the whole federation, by round
    each: Mapping[Key, Mapping[str, Series]]  # numbers of single clients
    ends_s: Mapping[int, float]  # round -> seconds of running when it ended
    heard: Mapping[str, frozenset[int]]  # client -> rounds in which its training counted
    failed: Mapping[str, Mapping[int, str]]  # client -> round -> why
    bytes_down: Mapping[int, float]  # round -> bytes from the server to all clients
    bytes_up: Mapping[int, float]
    header_down: Mapping[int, float]  # of those, what is no tensor: names, shapes, metrics, padding, checksums
    header_up: Mapping[int, float]
    saved_down: Mapping[int, float]  # round -> bytes more that they would have been without codecs; empty without any
    saved_up: Mapping[int, float]
    compute_s: Mapping[int, Mapping[str, float]]  # round -> "train" | "evaluate" -> client seconds, summed
    slowest_s: Mapping[int, float]  # round -> seconds of the client that trained longest
    ages: Mapping[int, int]  # staleness in rounds -> updates
    energy_j: Mapping[int, float]  # round -> simulated joules of all clients that answered; empty in real time
    co2e_g: Mapping[int, float]

    @property
    def rounds(self) -> int:
        """Rounds that were finished."""
        return max((at.round for series in self.whole.values() for at in series), default=0)

    @property
    def clients(self) -> list[str]:
        """Every client that answered or failed, as a person sorts them."""
        return sorted({*self.heard, *self.failed, *(c for clients in self.each.values() for c in clients)}, key=natural)

    @property
    def elapsed_s(self) -> float:
        """Seconds of running."""
        return max(self.ends_s.values(), default=0.0)

    @property
    def simulated_s(self) -> Mapping[int, float]:
        """Round -> the virtual clock at its end; empty in real time."""
        told = self.whole.get(("", "clock_s"), ()) if self.energy_j else ()
        return {at.round: at.value for at in told}

    @property
    def metrics(self) -> list[str]:
        """The names that are qualities and not costs: "loss" first, then as the alphabet has them."""
        names = {name for _, name in (*self.whole, *self.each) if name not in COSTS}
        return sorted(names, key=lambda name: (name != "loss", name != "accuracy", name))

    def judged(self, name: str) -> tuple[str, Series]:
        """The work that tells best how good the model is in `name`, and its series; ("", ()) when nothing does."""
        works = sorted({work for work, each in self.whole if each == name}, key=_trust)
        return next(((w, s) for w in works if w not in AFTER and (s := self.whole[w, name])), ("", ()))

    def judged_by_client(self, name: str) -> tuple[str, Mapping[str, Series]]:
        """The same for single clients."""
        works = sorted({work for work, each in self.each if each == name}, key=_trust)
        return next(((w, self.each[w, name]) for w in works if w not in {"finetune", "personal"}), ("", {}))


def read(record: Record) -> Facts:
    """The facts of `record`.

    >>> from atoll.store.record import Point
    >>> point = [
    ...     Point(0, "baseline", None, "loss", 2.0, 0.5),
    ...     Point(0, "train", "north", "bytes_up", 80.0, 0.9),
    ...     Point(0, "evaluate", None, "loss", 1.0, 1.5),
    ... ]
    >>> facts = read(Record("a", "a", "finished", 0, 1, {}, {}, "", "", None, None, "", "", series=tuple(point)))
    >>> [(at.round, at.value) for at in facts.whole["evaluate", "loss"]], facts.heard, facts.bytes_up
    ([(0, 2.0), (1, 1.0)], {'north': frozenset({1})}, {1: 80.0})
    """
    whole: dict[Key, dict[int, At]] = defaultdict(dict)
    each: dict[Key, dict[str, dict[int, At]]] = defaultdict(lambda: defaultdict(dict))
    ends: dict[int, float] = {}
    heard: dict[str, set[int]] = defaultdict(set)
    sums: dict[Key, dict[int, float]] = defaultdict(lambda: defaultdict(float))  # over clients: (train | evaluate, name)
    slowest: dict[int, float] = {}
    ages: Counter[int] = Counter()
    for point in record.series:
        work, _, name = point.name.rpartition("/") if not point.work else (point.work, "", point.name)
        shown = 0 if work.startswith("baseline") else point.round + 1
        ends[shown] = max(ends.get(shown, 0.0), point.elapsed_s)
        judging, at = work.startswith(JUDGING), At(shown, point.value, point.elapsed_s)
        key = (work.replace("baseline", "evaluate", 1), name)
        if point.client is None:
            whole[key][shown] = at
            continue
        if not point.client.startswith(HELD_OUT):
            each[key][point.client][shown] = at
        if not judging:
            heard[point.client].add(shown)
        if math.isfinite(point.value):
            sums["evaluate" if judging else "train", name][shown] += point.value
            if name == "age" and not judging:
                ages[int(point.value)] += 1
            if name == "seconds" and not judging:
                slowest[shown] = max(slowest.get(shown, 0.0), point.value)
    return Facts(
        whole={key: [rounds[r] for r in sorted(rounds)] for key, rounds in whole.items()},
        each={k: {c: [rs[r] for r in sorted(rs)] for c, rs in clients.items()} for k, clients in each.items()},
        ends_s=dict(sorted(ends.items())),
        heard={client: frozenset(rounds) for client, rounds in heard.items()},
        failed=_failures(record.failures),
        bytes_down=_bytes("bytes_down", whole, sums),
        bytes_up=_bytes("bytes_up", whole, sums),
        header_down=_bytes("header_down", whole, sums),
        header_up=_bytes("header_up", whole, sums),
        saved_down=_bytes("saved_down", whole, sums),
        saved_up=_bytes("saved_up", whole, sums),
        compute_s=_compute(sums),
        slowest_s=slowest,
        ages=dict(sorted(ages.items())),
        energy_j=_bytes("energy_j", whole, sums),
        co2e_g=_bytes("co2e_g", whole, sums),
    )


def shown_round(incident: Incident) -> int:
    """The round in which a person would look for this incident."""
    return 0 if incident.work.startswith("baseline") else incident.round + 1


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts client-2 before client-10.

    >>> sorted(["client-10", "client-2", "b"], key=natural)
    ['b', 'client-2', 'client-10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def round_s(facts: Facts) -> dict[int, float]:
    """Seconds of each round: virtual ones where there are, else told by the driver, else between the ends of two rounds.

    In real time round 0 holds the start.
    """
    if clock_s := facts.simulated_s:
        return {r: at_s - clock_s.get(r - 1, 0.0) for r, at_s in clock_s.items()}
    if told := facts.whole.get(("", "seconds")):
        return {at.round: at.value for at in told if math.isfinite(at.value)}
    spans, before = {}, 0.0
    for number, end in sorted(facts.ends_s.items()):
        spans[number] = max(end - before, 0.0)
        before = end
    return spans


def total_bytes(facts: Facts) -> list[tuple[int, float]]:
    """(round, bytes sent in both directions up to its end) for every round that has any number."""
    numbers, total, found = sorted({*facts.ends_s, *facts.bytes_down, *facts.bytes_up}), 0.0, []
    for number in numbers:
        total += facts.bytes_down.get(number, 0.0) + facts.bytes_up.get(number, 0.0)
        found.append((number, total))
    return found


class Ratio(NamedTuple):
    """How often all that was sent one way goes into what it would have been without codecs."""

    way: str  # "down" | "up" | "both ways"
    sent: float  # bytes
    plain: float  # bytes of the same frames without codecs, the model's numbers as they are trained

    @property
    def times(self) -> float:
        """1: nothing was saved."""
        return self.plain / self.sent


def ratios(facts: Facts) -> list[Ratio]:
    """Compression to clients, from clients, and of the sum; nothing for a run without codecs."""
    down, up = sum(facts.bytes_down.values()), sum(facts.bytes_up.values())
    saved_down, saved_up = sum(facts.saved_down.values()), sum(facts.saved_up.values())
    if not (down and up and (saved_down or saved_up)):
        return []
    ways = {"down": (down, saved_down), "up": (up, saved_up), "both ways": (down + up, saved_down + saved_up)}
    return [Ratio(way, sent, sent + saved) for way, (sent, saved) in ways.items()]


def higher_is_better(name: str) -> bool:
    """Whether a metric is to be raised; losses, errors and perplexities are to be lowered.

    >>> higher_is_better("accuracy"), higher_is_better("rmse"), higher_is_better("loss")
    (True, False, False)
    """
    lowered = ("loss", "error", "mse", "mae", "mape", "perplexity", "deviation", "nll", "bits", "brier", "epsilon")
    return not any(word in name.lower() for word in lowered)


class Spread(NamedTuple):
    """How one number lies over the clients at the end: the view of fairness."""

    name: str
    work: str
    latest: Sequence[tuple[str, float]]  # (client, its latest finite value), the worst first
    first: Mapping[str, float]  # client -> its earliest value, where there is an earlier one
    median: float
    deviation: float  # the standard deviation over clients
    worst_tenth: float  # mean over the worst tenth of the clients, at least one


def spread(facts: Facts, name: str) -> Spread | None:
    """The spread of `name` over clients, or None when fewer than two clients told it."""
    return _spread(name, *facts.judged_by_client(name))


def personal(facts: Facts, name: str) -> Spread | None:
    """The spread of `name` after fine-tuning at each client, from the global model's value; None when there was none."""
    shared, own = facts.each.get(("global", name), {}), facts.each.get(("personal", name), {})
    both = {c: [*shared[c][-1:], *own[c][-1:]] for c in own if c in shared}
    return _spread(name, "personal", both)


def _spread(name: str, work: str, clients: Mapping[str, Series]) -> Spread | None:
    finite = {c: [at for at in series if math.isfinite(at.value)] for c, series in clients.items()}
    latest = [(c, series[-1].value) for c, series in finite.items() if series]
    if len(latest) < 2:
        return None
    latest.sort(key=lambda pair: (pair[1] if higher_is_better(name) else -pair[1], pair[0]))
    values = [value for _, value in latest]
    tenth = values[: max(1, len(values) // 10)]
    first = {c: series[0].value for c, series in finite.items() if len(series) > 1}
    return Spread(name, work, latest, first, statistics.median(values), statistics.pstdev(values), statistics.fmean(tenth))


def _trust(work: str) -> tuple[int, str]:
    """Held-out data first, then the clients' own test data, then training."""
    order = {"evaluate": 0, "evaluate_clients": 1, "global": 2, "train": 3}
    return (order.get(work, 4), work)


def _failures(incidents: Sequence[Incident]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for incident in incidents:
        if incident.client is not None and not incident.work.startswith(JUDGING):
            found[incident.client][shown_round(incident)] = incident.text
    return dict(found)


def _bytes(name: str, whole: Mapping[Key, Mapping[int, At]], sums: Mapping[Key, Mapping[int, float]]) -> dict[int, float]:
    if told := whole.get(("", name)):
        return {r: at.value for r, at in sorted(told.items()) if math.isfinite(at.value)}
    found: dict[int, float] = defaultdict(float)
    for kind in ("train", "evaluate"):
        for number, value in sums.get((kind, name), {}).items():
            found[number] += value
    return dict(sorted(found.items()))


def _compute(sums: Mapping[Key, Mapping[int, float]]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for kind in ("train", "evaluate"):
        for number, value in sums.get((kind, "seconds"), {}).items():
            found[number][kind] = value
    return dict(found)
