"""What was learned: loss and metrics by round, and how they lie over the clients."""

from __future__ import annotations

import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from atoll.report.facts import AFTER, At, Facts, Spread, higher_is_better, natural, personal, spread
from atoll.report.lines import Line, evenly, label, lines, more
from atoll.report.plot import BAD, GOOD, INK, MUTED, SERIES, Canvas, Plot, Table, draw
from atoll.report.units import count, figure, is_share, number

CLIENT_LINES = 6  # more clients than this are drawn as a band
CLIENT_BARS = 32  # more than this as a histogram
WORKS = {
    "evaluate": "held-out data",
    "evaluate_clients": "clients' test data",
    "train": "training",
    "global": "clients' test data",
    "personal": "after fine-tuning at each client",
}


def said(work: str) -> str:
    """The name of a work for a reader.

    >>> said("evaluate"), said("public_logits")
    ('held-out data', 'public logits')
    """
    return WORKS.get(work, label(work.replace("_", " ")) if work else "whole round")


def by_round(facts: Facts) -> Iterator[Plot]:
    """One plot a metric, each with every work that told it."""
    for i, name in enumerate(facts.metrics):
        series = {work: s for (work, each), s in sorted(facts.whole.items(), key=_order) if each == name and work not in AFTER}
        if not series:
            continue
        drawn = [Line(said(work), _pairs(s), j) for j, (work, s) in enumerate(series.items())]
        title = f"{_title(name)} by round"
        yield Plot(
            title,
            draw(f"metric-{i}", functools.partial(_lines, name, drawn)),
            alt=" ".join(_sentence(name, work, s) for work, s in series.items()),
            table=_round_table(series),
            note=_not_finite(series),
        )


def by_client(facts: Facts) -> Iterator[Plot]:
    """The loss, and the accuracy where there is one, of single clients: over rounds, and at the end."""
    for name in [n for n in facts.metrics if n in {"loss", "accuracy"}] or facts.metrics[:1]:
        work, clients = facts.judged_by_client(name)
        if any(len(series) > 1 for series in clients.values()) and len(clients) > 1:
            yield _over_rounds(name, work, clients)
        if ends := spread(facts, name):
            yield _ends(
                ends, f"{_title(name)} of each client at the end", "From the first measurement (hollow) to the last (filled)"
            )
        if own := personal(facts, name):
            title = f"{_title(name)} after fine-tuning at each client"
            yield _ends(own, title, "From the shared model (hollow) to the client's own (filled)")


def fairness(facts: Facts) -> list[tuple[str, str]]:
    """(what, figure) for the first metric that single clients told; empty when none did."""
    found = next((s for name in facts.metrics if (s := spread(facts, name))), None)
    if found is None:
        return []
    (worst, low), (best, high) = found.latest[0], found.latest[-1]
    return [
        (f"Worst {found.name}", f"{figure(found.name, low)} ({label(worst)})"),
        ("Mean of the worst tenth", figure(found.name, found.worst_tenth)),
        ("Median", figure(found.name, found.median)),
        (f"Best {found.name}", f"{figure(found.name, high)} ({label(best)})"),
        ("Standard deviation", number(found.deviation)),
    ]


def _lines(name: str, drawn: Sequence[Line], canvas: Canvas) -> None:
    lines(canvas, drawn, "round")
    if is_share(name, [y for line in drawn for _, y in line.points]):
        canvas.per_cent(canvas.axes.yaxis)


def _over_rounds(name: str, work: str, clients: Mapping[str, Sequence[At]]) -> Plot:
    order = sorted(clients, key=lambda c: _last(clients[c]), reverse=not higher_is_better(name))  # the worst first
    rows = [[label(c, 60), *(number(_finite(clients[c], which)) for which in (0, -1))] for c in evenly(order)]
    if len(clients) <= CLIENT_LINES:
        drawn = [Line(label(c, 14), _pairs(clients[c]), i) for i, c in enumerate(sorted(clients, key=natural))]
        svg = draw(f"clients-{name}", functools.partial(_lines, name, drawn))
        alt = f"One line a client: {name} on {said(work)}."
    else:
        svg = draw(f"clients-{name}", lambda canvas: _band(canvas, name, clients, order))
        alt = f"The band holds the middle four fifths of {count(len(clients), 'client')}, with the median and the two extremes."
    return Plot(
        f"{_title(name)} by client and round",
        svg,
        alt=alt,
        table=Table(("client", "first", "last"), rows, more(order, rows)),
        note=f"On {said(work)}."
        + ("" if len(clients) <= CLIENT_LINES else " The band holds the middle four fifths of the clients."),
    )


def _band(canvas: Canvas, name: str, clients: Mapping[str, Sequence[At]], order: Sequence[str]) -> None:
    at: dict[int, list[float]] = defaultdict(list)
    for series in clients.values():
        for each in series:
            if math.isfinite(each.value):
                at[each.round].append(each.value)
    rounds = evenly(sorted(at), 240)
    tenths = [_quantiles(at[r]) for r in rounds]
    low, middle, high = ([q[i] for q in tenths] for i in range(3))
    canvas.axes.fill_between(rounds, low, high, color=SERIES[0], alpha=0.2, linewidth=0)
    worst, best = order[0], order[-1]
    drawn = [
        Line("median", list(zip(rounds, middle, strict=True)), 0),
        Line(f"worst: {label(worst, 12)}", _pairs(clients[worst]), 1),
        Line(f"best: {label(best, 12)}", _pairs(clients[best]), 2),
    ]
    _lines(name, drawn, canvas)


def _ends(ends: Spread, title: str, note: str) -> Plot:
    many = len(ends.latest) > CLIENT_BARS
    height = 240 if many else max(150, 62 + 17 * len(ends.latest))
    svg = draw(f"ends-{ends.name}-{ends.work}", lambda canvas: (_histogram if many else _dumbbells)(canvas, ends), height=height)
    (worst, low), (best, high) = ends.latest[0], ends.latest[-1]
    alt = (
        f"{_title(ends.name)} of {count(len(ends.latest), 'client')} at the end: worst {number(low)} ({label(worst)}), "
        f"median {number(ends.median)}, best {number(high)} ({label(best)})."
    )
    rows = [[label(c, 60), number(ends.first.get(c)), number(v)] for c, v in _both_ends(ends.latest)]
    return Plot(
        title,
        svg,
        alt=alt,
        table=Table(("client", "first", "last"), rows, more(ends.latest, rows)),
        note="" if many or not ends.first else f"{note}, the worst client on top.",
    )


def _dumbbells(canvas: Canvas, ends: Spread) -> None:
    axes, rows = canvas.axes, range(len(ends.latest))
    for row, (client, value) in zip(rows, ends.latest, strict=True):
        before = ends.first.get(client)
        if before is not None:
            better = (value > before) == higher_is_better(ends.name) or value == before
            axes.plot([before, value], [row, row], color=GOOD if better else BAD, alpha=0.55, linewidth=3, zorder=2)
            axes.plot([before], [row], "o", markerfacecolor="none", color=MUTED, markersize=5, markeredgewidth=1.2, zorder=3)
    texts = [f"{label(c)}: {number(ends.first.get(c))} → {number(v)}" for c, v in ends.latest]
    canvas.tip([v for _, v in ends.latest], list(rows), texts, s=36, color=SERIES[0], alpha=1.0, zorder=4)
    axes.axvline(ends.median, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    axes.set_yticks(list(rows), [label(c, 18) for c, _ in ends.latest])
    axes.set_ylim(len(ends.latest) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label(ends.name), loc="right")
    if is_share(ends.name, [*ends.first.values(), *(value for _, value in ends.latest)]):
        canvas.per_cent(axes.xaxis)


def _histogram(canvas: Canvas, ends: Spread) -> None:
    import numpy as np

    axes, values = canvas.axes, [value for _, value in ends.latest]
    counts, cuts, _ = axes.hist(values, bins=min(40, max(8, int(len(values) ** 0.6))), color=SERIES[0], alpha=0.75, rwidth=0.92)
    heights, edges = [float(n) for n in np.atleast_1d(counts)], [float(edge) for edge in cuts]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    texts = [f"{number(a)} to {number(b)}: {count(int(n), 'client')}" for n, (a, b) in zip(heights, pairwise(edges), strict=True)]
    canvas.tip(middles, [n / 2 for n in heights], texts)
    axes.axvline(ends.median, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"median {number(ends.median)}")
    axes.axvline(ends.worst_tenth, color=BAD, linewidth=1.4, label=f"mean of the worst tenth {number(ends.worst_tenth)}")
    axes.set_xlabel(label(ends.name), loc="right")
    if is_share(ends.name, [*ends.first.values(), *(value for _, value in ends.latest)]):
        canvas.per_cent(axes.xaxis)
    axes.set_ylabel("clients")
    canvas.legend()


def _round_table(series: Mapping[str, Sequence[At]]) -> Table:
    values = {work: {at.round: at.value for at in s} for work, s in series.items()}
    rounds = sorted({r for each in values.values() for r in each})
    rows = [[str(r), *(number(each.get(r)) for each in values.values())] for r in evenly(rounds)]
    return Table(("round", *(said(work) for work in series)), rows, more(rounds, rows))


def _sentence(name: str, work: str, series: Sequence[At]) -> str:
    finite = [at for at in series if math.isfinite(at.value)]
    if not finite:
        return f"{_title(name)} on {said(work)} was never a finite number."
    ends = f"{number(finite[0].value)} in round {finite[0].round} to {number(finite[-1].value)} in round {finite[-1].round}"
    return f"{_title(name)}, {said(work)}: from {ends}."


def _not_finite(series: Mapping[str, Sequence[At]]) -> str:
    bad = sum(not math.isfinite(at.value) for s in series.values() for at in s)
    return f"{count(bad, 'value')} not finite: a gap in the line, a cross at the foot." if bad else ""


def _both_ends(latest: Sequence[tuple[str, float]], most: int = 100) -> list[tuple[str, float]]:
    return list(latest) if len(latest) <= most else [*latest[: most // 2], *latest[-most // 2 :]]


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], statistics.median(values), tenths[-1]


def _order(item: tuple[tuple[str, str], object]) -> tuple[int, str]:
    work = item[0][0]
    return (list(WORKS).index(work) if work in WORKS else len(WORKS), work)


def _pairs(series: Sequence[At]) -> list[tuple[float, float]]:
    return [(at.round, at.value) for at in series]


def _finite(series: Sequence[At], which: int) -> float | None:
    finite = [at.value for at in series if math.isfinite(at.value)]
    return finite[which] if finite else None


def _last(series: Sequence[At]) -> float:
    value = _finite(series, -1)
    return -math.inf if value is None else value


def _title(name: str) -> str:
    return label(name.replace("_", " ").replace("/", ", ")[:1].upper() + name.replace("_", " ").replace("/", ", ")[1:], 40)
