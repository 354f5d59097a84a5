"""From single runs to medians, a table in plain text, and a verdict on each target. Nothing here runs anything."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from results import verdict

OURS = "atoll"
ACCURACY_SPREAD = 0.05  # a system that learned less by more than this did something else, however fast


class Run(NamedTuple):
    """One run of one system, or why there is none."""

    workload: str
    system: str
    first_round_s: float = 0.0  # from the start of the process to the end of the first round
    import_s: float = 0.0  # of that, importing torch or jax
    round_s: tuple[float, ...] = ()  # further rounds
    peak_mb: float = 0.0
    accuracy: float = 0.0
    problem: str = ""


class Row(NamedTuple):
    """Medians over the runs of a system on a workload."""

    workload: str
    system: str
    runs: int  # that worked
    round_s: float | None  # None: no run, or runs of one round only
    first_round_s: float | None
    beyond_import_s: float | None
    peak_mb: float | None
    accuracy: float | None
    problem: str  # of the runs that did not work


class Target(NamedTuple):
    """Atoll's fastest row is to be `factor` times faster than the fastest row of `peer` ("": of all peers)."""

    workload: str
    peer: str
    factor: float


TARGETS = (
    Target("w2-mlp", "flower", 20),
    Target("w2-mlp", "pfl", 3),
    Target("w2-mlp", "fedjax", 3),
    Target("w1-mlp", "flower", 5),
    Target("w1-mlp", "pfl", 3),
    Target("w1-mlp", "fedjax", 3),
    Target("w1-mlp", "nvflare", 20),
    Target("w1-cnn", "", 1.25),
)
START_S = 1.0  # beyond importing torch, the first round included: for workloads whose round is short beside it
START_WORKLOADS = ("w1-mlp", "w2-mlp")


def medians(runs: Iterable[Run]) -> list[Row]:
    """One row a workload and system, in the order of their first runs."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.workload, run.system), []).append(run)
    return [_row(workload, system, group) for (workload, system), group in grouped.items()]


def _row(workload: str, system: str, runs: Sequence[Run]) -> Row:
    worked = [run for run in runs if not run.problem]
    failed = [run.problem for run in runs if run.problem]
    problem = f"{len(failed)} of {len(runs)}: {failed[-1]}" if failed else ""
    return Row(
        workload,
        system,
        len(worked),
        _median([statistics.median(run.round_s) for run in worked if run.round_s]),
        _median([run.first_round_s for run in worked]),
        _median([run.first_round_s - run.import_s for run in worked]),
        _median([run.peak_mb for run in worked]),
        _median([run.accuracy for run in worked]),
        problem,
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def fastest(rows: Iterable[Row], workload: str, who: str) -> Row | None:
    """The row of the shortest round among the systems whose names begin with `who` ("": all but Atoll's)."""
    fit = [r for r in rows if r.workload == workload and r.round_s is not None]
    fit = [r for r in fit if (r.system.startswith(who) if who else not r.system.startswith(OURS))]
    return min(fit, key=lambda r: r.round_s or 0.0, default=None)


def cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What is shown of each row; a workload's rows stand together."""
    shown = []
    for row in sorted(rows, key=lambda r: r.workload):
        best = fastest(rows, row.workload, OURS)
        ratio = row.round_s / best.round_s if best and best.round_s and row.round_s else None
        shown.append(
            {
                "workload": row.workload,
                "system": row.system,
                "s a round": _rounded(row.round_s, 4),
                "x Atoll": _rounded(ratio, 2),
                "first round s": _rounded(row.first_round_s, 2),
                "beyond import s": _rounded(row.beyond_import_s, 2),
                "peak MB": _rounded(row.peak_mb, 0),
                "accuracy": _rounded(row.accuracy, 4),
                "runs": row.runs,
                "failed": row.problem,
            }
        )
    return shown


def verdicts(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Each target with what was measured beside it: met, missed, or why it was not measured."""
    found = []
    workloads = {row.workload for row in rows}
    for target in TARGETS:
        if target.workload in workloads:
            found.append(_faster(rows, target))
    for workload in sorted(workloads):
        ours, pfl = fastest(rows, workload, OURS), fastest(rows, workload, "pfl")
        if ours and ours.beyond_import_s is not None and workload in START_WORKLOADS:
            said = f"{ours.beyond_import_s:.2f} s ({ours.system})"
            name = f"{workload}: first round within {START_S:g} s beyond importing torch"
            found.append({"target": name, "measured": said, "": verdict(ours.beyond_import_s, at_most=START_S)})
        if ours and pfl and ours.peak_mb and pfl.peak_mb:
            said = f"{ours.peak_mb:,.0f} MB ({ours.system}) against {pfl.peak_mb:,.0f} ({pfl.system})"
            name = f"{workload}: peak memory at most pfl's, of the fastest row of each"
            found.append({"target": name, "measured": said, "": verdict(ours.peak_mb, at_most=pfl.peak_mb)})
        judged = {row.system: row.accuracy for row in rows if row.workload == workload and row.accuracy is not None}
        if len(judged) > 1:
            low, high = min(judged, key=lambda s: judged[s]), max(judged, key=lambda s: judged[s])
            spread = judged[high] - judged[low]
            said = f"from {judged[low]:.3f} ({low}) to {judged[high]:.3f} ({high})"
            name = f"{workload}: accuracies within {ACCURACY_SPREAD:g} of each other"
            found.append({"target": name, "measured": said, "": verdict(spread, at_most=ACCURACY_SPREAD)})
    return found


def _faster(rows: Sequence[Row], target: Target) -> dict[str, str]:
    name = f"{target.workload}: {target.factor:g}x {target.peer or 'the fastest peer'}"
    ours, peer = fastest(rows, target.workload, OURS), fastest(rows, target.workload, target.peer)
    if not ours or not ours.round_s or not peer or not peer.round_s:
        missing = OURS if not ours else target.peer or "peers"
        return {"target": name, "measured": f"no round time of {missing}", "": "not measured"}
    ratio = peer.round_s / ours.round_s
    said = f"{ratio:.2f}x: {ours.round_s:.4g} s ({ours.system}) against {peer.round_s:.4g} ({peer.system})"
    return {"target": name, "measured": said, "": verdict(ratio, at_least=target.factor)}


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as columns of plain text; a cell's further lines are left to the JSON."""
    if not rows:
        return "nothing"
    columns = list(rows[0])
    lines = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    numeric = [all(isinstance(row[c], int | float | None) for row in rows) for c in columns]
    aligned = [
        "  ".join(x.rjust(w) if n else x.ljust(w) for x, w, n in zip(line, widths, numeric, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * max(map(len, aligned)), *aligned[1:]])


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4g}"
    return str(value).partition("\n")[0][:100]
