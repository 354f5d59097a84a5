"""Drawing clients by weight: without replacement, or with given probabilities of being drawn at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from atoll import rng


def uniforms(n: int, seed: int, *place: object) -> list[float]:
    """n numbers in [0, 1), the same for the same place.

    >>> uniforms(2, 0, "x") == uniforms(2, 0, "x")
    True
    """
    import torch

    draws: list[float] = torch.rand(n, generator=rng.generator(seed, *place), dtype=torch.float64).tolist()
    return draws


def weighted_order(weights: Sequence[float], draws: Sequence[float]) -> list[int]:
    """Indices as drawn one after another without replacement, each in proportion to its weight among those left.

    Keys -log(u) / w, ascending (Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003); who has weight 0 comes last.

    >>> weighted_order([0.0, 1.0, 3.0], [0.5, 0.5, 0.5])
    [2, 1, 0]
    """
    keys = [-math.log(max(u, 1e-300)) / w if w > 0 else math.inf for w, u in zip(weights, draws, strict=True)]
    return sorted(range(len(keys)), key=keys.__getitem__)


def inclusion(scores: Sequence[float], n: int) -> list[float]:
    """Probabilities in proportion to the scores that add up to n, none above 1 (arXiv:2010.13723, equation 7).

    Who would exceed 1 is drawn for certain, and the rest share what is left. Scores are not negative; where fewer than n
    are above 0, all are drawn alike.

    >>> inclusion([6.0, 1.0, 1.0], 2)
    [1.0, 0.5, 0.5]
    """
    if n >= len(scores):
        return [1.0] * len(scores)
    if sum(s > 0 for s in scores) < n:
        return [n / len(scores)] * len(scores)
    falling = sorted(scores, reverse=True)
    left, certain = math.fsum(falling), 0
    while certain < n and falling[certain] * (n - certain) >= left:
        left -= falling[certain]
        certain += 1
    least = falling[certain - 1] if certain else math.inf
    share = (n - certain) / left if n > certain else 0.0
    return [1.0 if score >= least else score * share for score in scores]


def systematic(probabilities: Sequence[float], draw: float) -> list[int]:
    """Indices of a sample of fixed size in which each has exactly its probability (Madow 1949, doi:10.1214/aoms/1177729988).

    Those are drawn in whose interval of the cumulated probabilities one of draw, draw + 1, draw + 2, ... falls.

    >>> systematic([0.5, 0.5, 1.0], 0.7)
    [1, 2]
    """
    ends = list(accumulate(probabilities))
    if not ends:
        return []
    ends[-1] = float(round(ends[-1]))  # it is a whole number, up to rounding
    starts = [0.0, *ends[:-1]]
    return [i for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if math.ceil(b - draw) > math.ceil(a - draw)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, interpolated linearly.

    >>> quantile([1.0, 3.0, 2.0], 0.75)
    2.5
    """
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
