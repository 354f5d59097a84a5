"""Several runs side by side: how each learned by round, second and byte, how each ended, and what was set differently."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from atoll.errors import ConfigError
from atoll.report import outcome
from atoll.report.facts import Facts, higher_is_better, read, total_bytes
from atoll.report.learning import said
from atoll.report.lines import Line, label, lines
from atoll.report.page import environment, flat, printable
from atoll.report.plot import DASHES, SERIES, Canvas, Plot, Table, draw
from atoll.report.units import count, duration, figure, is_share, number, size, size_unit
from atoll.store.record import Record

ABSENT = "–"
WIDE = 10.0  # between the most and the least that runs sent: from here on bytes are drawn on a logarithmic axis


class Row(NamedTuple):
    """One run of the final table."""

    name: str
    style: int
    cells: Sequence[str]
    best: Sequence[bool]  # which cells are the best of their column


def render_comparison(records: Sequence[Record]) -> str:
    """The comparison of `records` as one HTML document, in the order given.

    Raises:
        ConfigError: there are no records.

    >>> page = render_comparison(
    ...     [Record(n, n, "finished", 0, 2, {"lr": lr}, {}, "", "", None, None, "", "") for n, lr in (("a", 0.1), ("b", 0.2))]
    ... )
    >>> "0.2" in page
    True
    """
    if not records:
        raise ConfigError("a comparison wants one run at least, and none was named; `atoll runs` lists them.")
    facts = [read(record) for record in records]
    names = titles(records)
    columns, rows = _final(records, facts, names)
    html = environment().get_template("comparison.html").render(
        title=f"Comparison of {count(len(records), 'run')}",
        sentence=_sentence(facts, names),
        columns=columns,
        rows=rows,
        dashes=len(DASHES),
        colours=len(SERIES),
        plots=list(_plots(facts, names)),
        differing=differing(records),
        names=names,
    )  # fmt: skip
    return printable(html)


def summary_rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """One row a run for a table in the terminal: every row has the same keys, in the same order.

    >>> from atoll.store.record import Point
    >>> points = (Point(0, "baseline", None, "loss", 2.0, 0.5), Point(0, "evaluate", None, "loss", 1.0, 1.5))
    >>> summary_rows([Record("a-1", "a", "finished", 0, 1, {}, {}, "", "", None, None, "", "", series=points)])
    [{'run': 'a-1', 'status': 'finished', 'rounds': '1/1', 'loss at first': '2', 'loss': '1', 'time': '1.5 s',
      'down': '–', 'up': '–'}]
    """
    facts = [read(record) for record in records]
    metrics = _shared(facts)
    rows = []
    for record, each in zip(records, facts, strict=True):
        row = {"run": record.id, "status": record.status, "rounds": f"{each.rounds}/{record.rounds}"}
        found = {change.name: change for change in outcome.changes(each)}
        for i, name in enumerate(metrics):
            change = found.get(name)
            if i == 0:
                row[f"{name} at first"] = figure(name, change.first if change else None)
            row[name] = figure(name, change.last if change else None)
        down, up = sum(each.bytes_down.values()), sum(each.bytes_up.values())
        row |= {"time": duration(each.elapsed_s), "down": size(down) if down else ABSENT, "up": size(up) if up else ABSENT}
        rows.append(row)
    return rows


def differing(records: Sequence[Record]) -> Table:
    """The settings, seeds and versions that are not the same in all records, one row a key.

    >>> made = [
    ...     Record(n, n, "finished", 7, 2, {"data": {"name": "digits"}, "lr": lr}, {}, "", "", None, None, "", "")
    ...     for n, lr in (("a", 0.1), ("b", 0.2))
    ... ]
    >>> differing(made).rows
    [['lr', '0.1', '0.2']]
    """
    settings = [_settings(record) for record in records]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    rows = [[key, *(_said(each.get(key)) for each in settings)] for key in keys]
    return Table(("setting", *titles(records)), [row for row in rows if len(set(row[1:])) > 1])


def titles(records: Sequence[Record]) -> list[str]:
    """A name for each record: its own where that tells it from the others, else its id."""
    names = [record.name for record in records]
    return [record.name if names.count(record.name) == 1 else record.id for record in records]


def _plots(facts: Sequence[Facts], names: Sequence[str]) -> Iterator[Plot]:
    for i, name in enumerate(_shared(facts)[:3]):
        works = [work for each in facts if (work := each.judged(name)[0])]
        note = f"On {said(works[0])}." if len(set(works)) == 1 else "Not all runs measured it on the same kind of data."
        rounds = [[(at.round, at.value) for at in each.judged(name)[1]] for each in facts]
        yield _plot(f"{i}-rounds", name, "rounds", "round", names, rounds, note)
        if i:
            continue  # what a metric costs in time and bytes is told once, by the first
        times = [[(at.elapsed_s, at.value) for at in each.judged(name)[1]] for each in facts]
        unit, scale = _time_unit(max((x for points in times for x, _ in points), default=0.0))
        yield _plot("time", name, "time", unit, names, [[(x / scale, y) for x, y in points] for points in times], note)
        if any(each.simulated_s for each in facts):
            clocks = [[(each.simulated_s.get(at.round, 0.0), at.value) for at in each.judged(name)[1]] for each in facts]
            shown = [points if each.simulated_s else [] for each, points in zip(facts, clocks, strict=True)]
            unit, scale = _time_unit(max((x for points in shown for x, _ in points), default=0.0))
            scaled = [[(x / scale, y) for x, y in points] for points in shown]
            yield _plot("clock", name, "simulated time", unit, names, scaled, f"{note} On the clock of each run's fleet.")
        sent = [_against_bytes(each, name) for each in facts]
        most = max((x for points in sent for x, _ in points), default=0.0)
        if most:
            unit, scale = size_unit(most)
            ends = [points[-1][0] for points in sent if points and points[-1][0] > 0]
            wide = max(ends) / min(ends) > WIDE
            scaled = [[(x / scale, y) for x, y in points if x > 0 or not wide] for points in sent]
            yield _plot("bytes", name, "bytes sent", unit, names, scaled, f"{note} Both directions together.", wide)


def _plot(
    id: str,
    name: str,
    against: str,
    unit: str,
    names: Sequence[str],
    points: Sequence[Sequence[tuple[float, float]]],
    note: str,
    wide: bool = False,
) -> Plot:
    drawn = [Line(label(run, 18), each, i) for i, (run, each) in enumerate(zip(names, points, strict=True)) if each]
    rows = []
    for run, each in zip(names, points, strict=True):
        finite = [(x, y) for x, y in each if math.isfinite(y)]
        if finite:
            best = (max if higher_is_better(name) else min)(finite, key=lambda pair: pair[1])
            rows.append([run, *(number(v) for v in (finite[0][1], best[1], best[0], finite[-1][1], finite[-1][0]))])
    shown = name.replace("_", " ")
    title = f"{shown[:1].upper()}{shown[1:]} against {against}"
    alt = f"{title}. " + " ".join(f"{row[0]}: from {row[1]} to {row[4]}, at best {row[2]}." for row in rows[:12])
    table = Table(("run", "first", "best", f"best at ({unit})", "last", f"last at ({unit})"), rows)
    return Plot(label(title, 60), draw(f"compare-{id}", functools.partial(_paint, name, drawn, unit, wide)), alt, table, note)


def _paint(name: str, drawn: Sequence[Line], unit: str, wide: bool, canvas: Canvas) -> None:
    lines(canvas, drawn, unit)
    if wide:
        canvas.logarithmic(canvas.axes.xaxis)
    if is_share(name, [y for line in drawn for _, y in line.points]):
        canvas.per_cent(canvas.axes.yaxis)
    if (legend := canvas.axes.get_legend()) is not None:
        legend.remove()  # the table above the plots is the legend of all of them


def _final(records: Sequence[Record], facts: Sequence[Facts], names: Sequence[str]) -> tuple[list[str], list[Row]]:
    """The columns and rows of the final table; the best of a column is marked where two runs or more have it."""
    metrics = _shared(facts)
    columns: list[str] = ["status", "rounds"]
    figures: list[list[tuple[str, float | None]]] = [
        [(record.status, None), (f"{each.rounds:,} of {record.rounds:,}", None)]
        for record, each in zip(records, facts, strict=True)
    ]
    changes = [{change.name: change for change in outcome.changes(each)} for each in facts]
    for name in metrics:
        sign = -1.0 if higher_is_better(name) else 1.0
        columns += [label(name), f"best {label(name)}"] if name == metrics[0] else [label(name)]
        for row, found in zip(figures, changes, strict=True):
            change = found.get(name)
            values = [change.last if change else None, change.best if change else None]
            told = [(figure(name, v), None if v is None else sign * v) for v in values]
            row += told if name == metrics[0] else told[:1]
    columns += ["time", "down", "up", "clients", "failures"]
    for row, record, each in zip(figures, records, facts, strict=True):
        down, up = sum(each.bytes_down.values()), sum(each.bytes_up.values())
        row += [(duration(each.elapsed_s), each.elapsed_s or None), (size(down) if down else ABSENT, down or None)]
        row += [(size(up) if up else ABSENT, up or None), (f"{len(each.clients):,}", None), (f"{len(record.failures):,}", None)]
    best = [_least([row[i][1] for row in figures]) for i in range(len(columns))]
    rows = [
        Row(name, i, [text for text, _ in row], [v is not None and v == b for (_, v), b in zip(row, best, strict=True)])
        for i, (name, row) in enumerate(zip(names, figures, strict=True))
    ]
    return columns, rows


def _least(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return min(told) if len(told) > 1 and min(told) != max(told) else None


def _sentence(facts: Sequence[Facts], names: Sequence[str]) -> str:
    metrics = _shared(facts)
    if not metrics:
        return "No metric is told by more than one of them."
    name = metrics[0]
    ends = [(c.last, run) for each, run in zip(facts, names, strict=True) for c in outcome.changes(each) if c.name == name]
    value, run = (max if higher_is_better(name) else min)(ends, key=lambda pair: pair[0])
    return f"The best {name.replace('_', ' ')} at the end is {figure(name, value)}, of {run}."


def _shared(facts: Sequence[Facts]) -> list[str]:
    """Metrics that two runs or more told, or all those of a single run; loss first."""
    told = [[change.name for change in outcome.changes(each)] for each in facts]
    names = list(dict.fromkeys(name for each in told for name in each))
    shared = [name for name in names if sum(name in each for each in told) >= min(2, len(facts))]
    return sorted(shared, key=lambda name: (name != "loss", name != "accuracy", name))


def _against_bytes(facts: Facts, name: str) -> list[tuple[float, float]]:
    totals, found, spent = total_bytes(facts), list[tuple[float, float]](), 0.0
    at = dict(totals)
    for each in facts.judged(name)[1]:
        spent = at.get(each.round, spent)
        found.append((spent, each.value))
    return found


def _settings(record: Record) -> Mapping[str, Any]:
    config = {key: value for key, value in record.config.items() if key not in {"name", "seed", "rounds"}}
    versions = {f"version of {package}": version for package, version in record.versions.items()}
    return {"rounds": record.rounds, "seed": record.seed, **flat(config), **versions, "machine": record.environment or None}


def _said(value: Any) -> str:
    if value is None:
        return ABSENT
    return str(value).lower() if isinstance(value, bool) else str(value)


def _time_unit(longest_s: float) -> tuple[str, float]:
    return ("hours", 3600.0) if longest_s > 3 * 3600 else ("minutes", 60.0) if longest_s > 180 else ("seconds", 1.0)
