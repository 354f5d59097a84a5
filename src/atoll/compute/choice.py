"""Ways to compute by name."""

from __future__ import annotations

from typing import Literal, TypeAlias

from atoll.compute.eager import eager
from atoll.compute.stacked import stacked
from atoll.compute.traced import traced
from atoll.errors import unknown
from atoll.types import Compute

Way: TypeAlias = Literal["eager", "traced", "stacked"]


def compute_by(way: Way) -> Compute:
    """The way of that name.

    >>> type(compute_by("eager")).__name__
    'Eager'
    """
    ways = {"eager": eager, "traced": traced, "stacked": stacked}
    if way not in ways:
        raise unknown("way to compute", way, set(ways))
    return ways[way]()
