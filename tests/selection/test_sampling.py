"""The draws behind the rules: probabilities that are exactly what they say."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.selection.sampling import inclusion, quantile, systematic, uniforms, weighted_order

scores = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12)


@given(scores, st.integers(1, 12))
def test_inclusion_adds_up_and_keeps_the_proportions(scores: list[float], n: int) -> None:
    chances = inclusion(scores, n)
    assert math.isclose(sum(chances), min(n, len(scores)), rel_tol=1e-9)
    assert all(0 < p <= 1 + 1e-12 for p in chances)
    free = [(p / s) for p, s in zip(chances, scores, strict=True) if p < 1 - 1e-9]
    assert all(math.isclose(ratio, free[0], rel_tol=1e-6) for ratio in free)
    if free:  # who is certain would have had 1 or more by proportion
        assert all(free[0] * s >= 1 - 1e-6 for p, s in zip(chances, scores, strict=True) if p >= 1 - 1e-9)


def test_inclusion_by_hand() -> None:
    # n = 3: 10 of 16 would have 30/16, so it is certain; then 4 of 6 at two places 8/6, certain; 1 and 1 share one place.
    assert inclusion([1.0, 10.0, 4.0, 1.0], 3) == [0.5, 1.0, 1.0, 0.5]
    assert inclusion([0.0, 0.0, 5.0, 0.0], 2) == [0.5] * 4, "fewer than n have a score: all alike"


def outcomes(chances: list[float]) -> list[tuple[float, list[int]]]:
    """Every sample that systematic sampling can give, with its probability: between two breakpoints it is the same."""
    breaks = sorted({0.0, 1.0, *(end % 1.0 for end in itertools.accumulate(chances))})
    return [(b - a, systematic(chances, (a + b) / 2)) for a, b in itertools.pairwise(breaks) if b - a > 1e-9]


@given(scores, st.integers(1, 12))
def test_systematic_samples_have_a_fixed_size_and_exact_probabilities(scores: list[float], n: int) -> None:
    chances = inclusion(scores, n)
    found = outcomes(chances)
    assert {len(sample) for _, sample in found} == {min(n, len(scores))}
    for i, wanted in enumerate(chances):
        assert math.isclose(sum(p for p, sample in found if i in sample), wanted, abs_tol=1e-6)


def test_weighted_order_draws_in_proportion() -> None:
    draws = uniforms(4 * 4000, 0, "test")
    first = Counter(weighted_order([1.0, 2.0, 5.0, 0.0], draws[4 * i : 4 * i + 4])[0] for i in range(4000))
    for i, share in enumerate([0.125, 0.25, 0.625]):
        assert first[i] / 4000 == pytest.approx(share, abs=0.03)  # four standard deviations
    assert first[3] == 0


def test_quantiles_as_numpy_has_them() -> None:
    import numpy as np

    values = [3.0, 1.0, 7.0, 2.0]
    assert [quantile(values, q) for q in (0.0, 0.3, 0.95, 1.0)] == pytest.approx(np.quantile(values, [0.0, 0.3, 0.95, 1.0]))
