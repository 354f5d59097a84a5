"""Who took part: which client was heard in which round, who failed and why, and how much each one holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atoll.report.facts import Facts, natural
from atoll.report.lines import evenly, label, more
from atoll.report.plot import BAD, SERIES, Canvas, Plot, Table, draw
from atoll.report.units import count, number

ROWS, COLUMNS = 56, 120  # more clients or rounds than this share a cell, which is shaded by the share that was heard
SHADES = 4


def heat_map(facts: Facts) -> Iterator[Plot]:
    """Clients by rounds: filled where a client's training counted, crossed where it failed."""
    names = sorted({*facts.heard, *facts.failed}, key=lambda c: (-len(facts.heard.get(c, ())), c))
    rounds = max((r for rs in (*facts.heard.values(), *facts.failed.values()) for r in rs), default=0)
    if not names or not rounds:
        return
    if len(names) <= ROWS:
        names.sort(key=natural)
    rows = [[label(c, 60), f"{len(facts.heard.get(c, ())):,}", f"{len(facts.failed.get(c, ())):,}"] for c in evenly(names)]
    heard, failed = sum(map(len, facts.heard.values())), sum(map(len, facts.failed.values()))
    per_row, per_column = -(-len(names) // ROWS), -(-rounds // COLUMNS)
    shared = " and ".join(
        part for part, n in ((count(per_row, "client"), per_row), (count(per_column, "round"), per_column)) if n > 1
    )
    drawn_rows = -(-len(names) // per_row)
    height = 64 + max(50, (15 if drawn_rows <= 24 else 7) * drawn_rows)
    yield Plot(
        "Clients by round",
        draw("participation", lambda canvas: _paint(canvas, facts, names, rounds), 860, height),
        alt=f"{count(len(names), 'client')} in {count(rounds, 'round')}: {count(heard, 'update')}, {count(failed, 'failure')}.",
        table=Table(("client", "rounds heard", "failures"), rows, more(names, rows)),
        note=(f"A cell is up to {shared}, stronger where more were heard. " if shared else "Filled: the update counted. ")
        + ("Crossed: the client failed." if failed else "No client failed."),
        wide=True,
    )  # fmt: skip


def examples(facts: Facts) -> Iterator[Plot]:
    """How many examples each client trained on in a round."""
    held = {
        client: max(at.value for at in series)
        for (work, name), clients in facts.each.items()
        if name == "examples" and work == "train"
        for client, series in clients.items()
    }
    held = {c: n for c, n in held.items() if math.isfinite(n)}
    if len(held) < 2:
        return
    order = sorted(held.items(), key=lambda pair: (-pair[1], pair[0]))
    many = len(order) > 32
    height = 240 if many else max(150, 46 + 17 * len(order))
    rows = [[label(c, 60), f"{n:,.0f}"] for c, n in evenly(order)]
    values = list(held.values())
    yield Plot(
        "Examples a client",
        draw("examples", lambda canvas: (_curve if many else _bars)(canvas, order), height=height),
        alt=f"Between {min(values):,.0f} and {max(values):,.0f} examples a client, {sum(values):,.0f} in all.",
        table=Table(("client", "examples"), rows, more(order, rows)),
        note="Read in one round of training: its set times its epochs, or fewer if it was told so.",
    )  # fmt: skip


def _paint(canvas: Canvas, facts: Facts, names: Sequence[str], rounds: int) -> None:
    per_row, per_column = -(-len(names) // ROWS), -(-rounds // COLUMNS)
    groups = [names[i : i + per_row] for i in range(0, len(names), per_row)]
    shades = _shades(facts.heard, groups, rounds, per_row, per_column)
    gap = 0.08 if len(groups) <= 24 else 0.04
    for shade in range(1, SHADES + 1):
        _cells(canvas, [cell for cell in shades if cell[3] == shade], per_column, gap, shade / SHADES)
    crosses = _crosses(facts.failed, groups, per_column)
    canvas.tip(
        [x for x, _, _ in crosses], [y for _, y, _ in crosses], [t for _, _, t in crosses],
        marker="X", s=34 if per_row * per_column == 1 else 18, color=BAD, alpha=1.0, linewidths=0,
    )  # fmt: skip
    axes = canvas.axes
    axes.set_xlim(0.5, rounds + 0.5 if rounds > 1 else 1.5)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    if per_row == 1 and len(groups) <= 24:
        axes.set_yticks(range(len(groups)), [label(c, 20) for c in names])
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(names):,} clients")
    canvas.count_rounds(most=12)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def _shades(
    heard: Mapping[str, frozenset[int]], groups: Sequence[Sequence[str]], rounds: int, per_row: int, per_column: int
) -> list[tuple[int, int, int, int]]:
    """(row, first column, end column, shade) of each stretch of equal cells that are not empty, columns from 0."""
    columns = -(-rounds // per_column)
    shares: list[list[float]] = []
    for group in groups:
        filled = [0] * columns
        for client in group:
            for r in heard.get(client, ()):
                if r > 0:
                    filled[(r - 1) // per_column] += 1
        full = [len(group) * min(per_column, rounds - c * per_column) for c in range(columns)]
        shares.append([n / most for n, most in zip(filled, full, strict=True)])
    strongest = max((share for row in shares for share in row), default=0.0) or 1.0
    found = []
    for row, each in enumerate(shares):
        levels, start = [math.ceil(SHADES * share / strongest - 1e-9) for share in each], 0
        for column in range(1, columns + 1):
            joined = column < columns and levels[column] == levels[start] and columns > 60
            if not joined:
                if levels[start]:
                    found.append((row, start, column, min(levels[start], SHADES)))
                start = column
    return found


def _cells(canvas: Canvas, cells: Sequence[tuple[int, int, int, int]], per_column: int, gap: float, depth: float) -> None:
    """All cells of one shade as one path: a thousand rectangles in the bytes of a few."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not cells:
        return
    corners: list[Any] = []
    for row, first, end, _ in cells:
        left, right = first * per_column + 0.5 + gap * per_column / 2, end * per_column + 0.5 - gap * per_column / 2
        corners += [
            (left, row - 0.5 + gap),
            (right, row - 0.5 + gap),
            (right, row + 0.5 - gap),
            (left, row + 0.5 - gap),
            (left, row),
        ]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(cells)
    canvas.axes.add_patch(PathPatch(Path(corners, codes), facecolor=SERIES[0], alpha=0.15 + 0.7 * depth, linewidth=0))


def _crosses(
    failed: Mapping[str, Mapping[int, str]], groups: Sequence[Sequence[str]], per_column: int, most: int = 400
) -> list[tuple[float, float, str]]:
    """(x, y, text) of each cell with a failure."""
    found: dict[tuple[float, float], str] = {}
    for row, group in enumerate(groups):
        for client in group:
            for r, why in sorted(failed.get(client, {}).items()):
                column = max(r - 1, 0) // per_column
                middle = column * per_column + 0.5 + per_column / 2
                found.setdefault((middle, row), f"{label(client)}, round {r}: {label(why, 160)}")
    return [(x, y, text) for (x, y), text in list(found.items())[:most]]


def _bars(canvas: Canvas, order: Sequence[tuple[str, float]]) -> None:
    axes, rows = canvas.axes, list(range(len(order)))
    axes.barh(rows, [n for _, n in order], color=SERIES[0], alpha=0.85, height=0.72)
    canvas.tip([n / 2 for _, n in order], rows, [f"{label(c)}: {n:,.0f}" for c, n in order])
    axes.set_yticks(rows, [label(c, 18) for c, _ in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: number(value))


def _curve(canvas: Canvas, order: Sequence[tuple[str, float]]) -> None:
    axes = canvas.axes
    axes.fill_between(range(1, len(order) + 1), [n for _, n in order], color=SERIES[0], alpha=0.6, linewidth=0, step="mid")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("examples")
    axes.set_xlabel("clients, the largest first", loc="right")
