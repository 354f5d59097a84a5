"""What every benchmark ends with: a table on the screen and the same rows as JSON in benchmarks/out/."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out"


def publish(name: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> Path:
    """Print `rows`, whose keys are the columns, and write them to benchmarks/out/NAME.json with what they were measured on."""
    table = Table(title=name, caption=note or None, title_justify="left", caption_justify="left")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=None if os.isatty(1) else 160).print(table)
    return write(name, rows, note)


def write(name: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> Path:
    """Write `rows` to benchmarks/out/NAME.json, with what they were measured on."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps({"name": name, "note": note, "measured_on": measured_on(), "rows": rows}, indent=2) + "\n")
    return path


def verdict(value: float, *, at_most: float | None = None, at_least: float | None = None) -> str:
    """ "met" or "missed", for the column beside a target."""
    met = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    return "met" if met else "missed"


def measured_on() -> dict[str, Any]:
    """The machine and the versions, without what would name the machine."""
    versions = {package: importlib.metadata.version(package) for package in ("atoll", "torch", "numpy")}
    here = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip() or None,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **versions,
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
