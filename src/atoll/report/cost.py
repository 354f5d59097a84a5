"""What a run cost: seconds and bytes a round, and how stale the updates were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from atoll.report.facts import Facts, ratios, round_s
from atoll.report.lines import Line, evenly, lines, more
from atoll.report.plot import MUTED, SERIES, Canvas, Plot, Table, draw
from atoll.report.units import count, duration, size, size_unit

THIRD = (340, 232)  # three of these stand side by side
BARS = 90  # more rounds than this are drawn as one bar for several


def time(facts: Facts) -> Iterator[Plot]:
    """Seconds a round; split into training, evaluation and the rest where the clients worked one after another."""
    spans = round_s(facts)
    if not spans:
        return
    parts = {"whole round": spans} if facts.simulated_s else _parts(spans, facts.compute_s)
    split = len(parts) > 1
    ends = sorted(spans)
    rows = [[str(r), duration(spans[r]), *(duration(p.get(r)) for p in _told(facts)), duration(facts.slowest_s.get(r))]
            for r in evenly(ends)]  # fmt: skip
    total = sum(spans.values())
    yield Plot(
        "Simulated time a round" if facts.simulated_s else "Time a round",
        draw("time", lambda canvas: _bars(canvas, parts, "seconds"), *THIRD),
        alt=f"{count(len(ends), 'round')} in {duration(total)}; the longest took {duration(max(spans.values()))}.",
        table=Table(
            ("round", "whole round", "clients' training", "clients' evaluation", "slowest client"), rows, more(ends, rows)
        ),
        note=("" if split else "Clients worked side by side, so their own times do not add up to the round's. ")
        + ("Round 0 is the start: loading, and the evaluation before training." if 0 in spans else ""),
    )


def bytes_(facts: Facts) -> Iterator[Plot]:
    """Bytes a round each way, what of them are headers, and their running totals."""
    numbers = sorted({*facts.bytes_down, *facts.bytes_up})
    if not any((*facts.bytes_down.values(), *facts.bytes_up.values())):
        return
    ways = {"server to clients": facts.bytes_down, "clients to server": facts.bytes_up}
    totals = {way: _running(numbers, each) for way, each in ways.items()}
    headers = {"headers down": facts.header_down, "headers up": facts.header_up} if facts.header_down else {}
    columns = [*ways.values(), *headers.values(), *totals.values()]
    rows = [[str(r), *(size(each.get(r)) for each in columns)] for r in evenly(numbers)]
    table = Table(("round", "down", "up", *headers, "down in total", "up in total"), rows, more(numbers, rows))
    down, up = (each[numbers[-1]] for each in totals.values())
    alt = f"In all {size(down)} went from the server to clients, {size(up)} from clients to the server."
    unit, scale = size_unit(max((*facts.bytes_down.values(), *facts.bytes_up.values())))
    each = [Line(way, [(r, v / scale) for r, v in sorted(values.items())], i) for i, (way, values) in enumerate(ways.items())]
    note = "Whole frames: tensors, and headers, which hold names, shapes, metrics and checksums." if headers else ""
    drawn = draw("bytes", lambda canvas: _from_zero(canvas, each, unit), *THIRD)
    yield Plot("Bytes a round", drawn, alt=alt, table=table, note=note)
    total_unit, total_scale = size_unit(max(down, up))
    sums = [Line(way, [(r, v / total_scale) for r, v in t.items()], i) for i, (way, t) in enumerate(totals.items())]
    yield Plot(
        "Bytes in total", draw("bytes-total", lambda canvas: _from_zero(canvas, sums, total_unit), *THIRD), alt=alt, table=table
    )


def compression(facts: Facts) -> list[tuple[str, str]]:
    """How many times smaller the frames were than without codecs, each way and both; nothing for a run without codecs."""
    return [(f"compression {each.way}", f"{each.times:.3g} x, {size(each.plain)} to {size(each.sent)}") for each in ratios(facts)]


def staleness(facts: Facts) -> Iterator[Plot]:
    """How many rounds old the updates were; nothing for a synchronous run."""
    if not any(facts.ages):
        return
    ages = {age: facts.ages.get(age, 0) for age in range(max(facts.ages) + 1)}
    total = sum(ages.values())
    mean = sum(age * n for age, n in ages.items()) / total
    yield Plot(
        "Staleness of updates",
        draw("staleness", lambda canvas: _columns(canvas, ages), 860, 180),
        alt=f"{count(total, 'update')}, {mean:.2g} rounds old on average, {max(ages)} at most.",
        table=Table(("rounds late", "updates"), [[str(age), f"{n:,}"] for age, n in evenly(list(ages.items()))]),
        note="Rounds between the model a client started from and the one its update went into.",
        wide=True,
    )


def _parts(spans: Mapping[int, float], compute: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    """The stacked parts of each bar. Client seconds are a part only when no round is shorter than their sum."""
    sums = {r: sum(compute.get(r, {}).values()) for r in spans}
    if not any(sums.values()) or any(sums[r] > 1.05 * span + 0.01 for r, span in spans.items()):
        return {"whole round": dict(spans)}
    parts = {
        "training": {r: compute.get(r, {}).get("train", 0.0) for r in spans},
        "clients' evaluation": {r: compute.get(r, {}).get("evaluate", 0.0) for r in spans},
        "all else": {r: max(span - sums[r], 0.0) for r, span in spans.items()},
    }
    return {name: part for name, part in parts.items() if any(part.values())}


def _told(facts: Facts) -> list[dict[int, float]]:
    return [{r: parts[kind] for r, parts in facts.compute_s.items() if kind in parts} for kind in ("train", "evaluate")]


def _bars(canvas: Canvas, parts: Mapping[str, Mapping[int, float]], y_label: str) -> None:
    axes, numbers = canvas.axes, sorted(next(iter(parts.values())))
    step = -(-len(numbers) // BARS)
    groups = [numbers[i : i + step] for i in range(0, len(numbers), step)]
    at = [(group[0] + group[-1]) / 2 for group in groups]
    floor = [0.0] * len(groups)
    for colour, (name, part) in zip((SERIES[0], SERIES[5], MUTED), parts.items(), strict=False):
        heights = [sum(part[r] for r in group) / len(group) for group in groups]
        axes.bar(at, heights, width=step * 0.82, bottom=floor, color=colour, label=name, alpha=0.9 if colour != MUTED else 0.45)
        floor = [low + high for low, high in zip(floor, heights, strict=True)]
    named = [f"round {g[0]}" if len(g) == 1 else f"mean of rounds {g[0]} to {g[-1]}" for g in groups]
    canvas.tip(at, [h / 2 for h in floor], [f"{n}: {duration(h)}" for n, h in zip(named, floor, strict=True)])
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    canvas.count_rounds()
    axes.grid(axis="x", visible=False)
    canvas.legend()


def _from_zero(canvas: Canvas, series: Sequence[Line], unit: str) -> None:
    lines(canvas, series, "round", log=False)
    canvas.axes.set_ylim(bottom=0)
    canvas.axes.set_ylabel(unit)


def _columns(canvas: Canvas, ages: Mapping[int, int]) -> None:
    canvas.axes.bar(list(ages), list(ages.values()), width=0.82, color=SERIES[0], alpha=0.9)
    canvas.tip(
        list(ages), [n / 2 for n in ages.values()], [f"{count(a, 'round')} late: {count(n, 'update')}" for a, n in ages.items()]
    )
    canvas.axes.set_ylabel("updates")
    canvas.count_rounds("rounds late")
    canvas.axes.grid(axis="x", visible=False)


def _running(numbers: Sequence[int], values: Mapping[int, float]) -> dict[int, float]:
    total, found = 0.0, {}
    for each in numbers:
        total += values.get(each, 0.0)
        found[each] = total
    return found
