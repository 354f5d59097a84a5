"""Ways to compute by name."""

from __future__ import annotations

from typing import Literal, TypeAlias

from atoll.compute.eager import eager
from atoll.compute.measured import measured
from atoll.compute.stacked import stacked
from atoll.compute.traced import traced
from atoll.errors import unknown
from atoll.interfaces import Compute

Way: TypeAlias = Literal["eager", "traced", "stacked", "auto"]


def compute_by(way: Way | Compute) -> Compute:
    """The way of that name; one that has been made already as it is.

    >>> type(compute_by("eager")).__name__
    'Eager'
    """
    if not isinstance(way, str):
        return way
    ways = {"eager": eager, "traced": traced, "stacked": stacked, "auto": measured}
    if way not in ways:
        raise unknown("way to compute", way, set(ways))
    return ways[way]()
