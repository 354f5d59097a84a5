"""Lines over rounds, seconds or bytes: thinned to what a screen can show, hollow where a value is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from atoll.report.plot import DASHES, SERIES, SURFACE, Canvas
from atoll.report.units import number

POINTS = 360  # a line keeps this many points at most; a plot is about as many pixels wide
TIPS = 60  # marks under the pointer, a line
ROWS = 200  # of a table of numbers


class Line(NamedTuple):
    """One named series of (x, y) pairs, x ascending."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0  # which colour and dash


def label(text: str, longest: int = 26) -> str:
    """Any text made fit to be drawn: on one line, printable, and not too long.

    >>> label("north"), label("a\\x00b\\nc"), label("x" * 40, 8)
    ('north', 'a·b·c', 'xxxxxxx…')
    """
    clean = "".join(c if c.isprintable() else "·" for c in text) or "(no name)"
    short = clean if len(clean) <= longest else clean[: longest - 1] + "…"
    return f"\u200b{short}" if short.startswith("_") else short  # Matplotlib leaves names with "_" out of a legend


def thin(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most about `most` of the points: the first, the last, and of each stretch between them the lowest and the
    highest, so that a spike of one round is still seen.

    >>> len(thin([(x, x % 7) for x in range(10_000)], 100)) <= 102
    True
    >>> thin([(0, 1.0), (1, 2.0)])
    [(0, 1.0), (1, 2.0)]
    """
    if len(points) <= most:
        return list(points)
    stretch = 2 * len(points) / most
    kept = {0, len(points) - 1}
    for i in range(most // 2):
        inside = range(int(i * stretch), min(int((i + 1) * stretch), len(points)))
        finite = [at for at in inside if math.isfinite(points[at][1])]
        if finite:
            kept |= {min(finite, key=lambda at: points[at][1]), max(finite, key=lambda at: points[at][1])}
        else:
            kept |= set(inside[:1])
    return [points[at] for at in sorted(kept)]


def evenly(items: Sequence[Any], most: int = ROWS) -> list[Any]:
    """At most `most` of the items, evenly spread, the first and the last among them.

    >>> evenly(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def lines(canvas: Canvas, series: Sequence[Line], x_label: str, *, log: bool | None = None) -> None:
    """Draw the series; a logarithmic axis where the values span more than a factor of 60, unless `log` says."""
    axes, finite = canvas.axes, [y for line in series for _, y in line.points if math.isfinite(y)]
    if finite and (log if log is not None else min(finite) > 0 and max(finite) / min(finite) > 60):
        canvas.logarithmic(axes.yaxis)
    few = all(len(line.points) <= 31 for line in series)
    for line in series:
        _one(canvas, line, few)
    if x_label == "round":
        canvas.count_rounds()
    else:
        axes.set_xlabel(x_label, loc="right")
    axes.margins(x=0.02, y=0.08)
    canvas.legend()


def _one(canvas: Canvas, line: Line, few: bool) -> None:
    colour = SERIES[line.style % len(SERIES)]
    dash = DASHES[line.style // len(SERIES) % len(DASHES)] if line.style >= len(SERIES) else "-"
    points = thin(line.points)
    canvas.axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linestyle=dash, label=line.name)
    shown = evenly([p for p in points if math.isfinite(p[1])], TIPS)
    marks = {"s": 16, "color": colour, "alpha": 1.0, "edgecolors": SURFACE, "linewidths": 0.6} if few else {}
    texts = [f"{line.name}, {number(x)}: {number(y)}" for x, y in shown]
    canvas.tip([x for x, _ in shown], [y for _, y in shown], texts, **marks)
    for x, _ in broken(line):
        canvas.axes.plot([x], [0.03], "x", color=colour, markersize=5, transform=canvas.axes.get_xaxis_transform(), clip_on=False)


def broken(line: Line) -> Iterator[tuple[float, float]]:
    """The points without a finite value, a hundred at most."""
    return iter([(x, y) for x, y in line.points if not math.isfinite(y)][:100])


def more(whole: Sequence[object], rows: Sequence[object]) -> str:
    """What a table says that shows only some of its rows; "" when it shows them all."""
    return f"{len(rows)} of {len(whole):,}; the runs database has them all." if len(rows) < len(whole) else ""
