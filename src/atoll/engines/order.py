"""In what order clients are handed to workers, and in what portions: as asked, unless another order is worth its price.

Updates are folded in the order in which clients were asked, so one that lands before its turn has to be held: a copy, or
a file to read back. Largest first (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969:
at most 4/3 - 1/(3 w) of the shortest makespan) is therefore taken only where it is predicted to end sooner, that price paid.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

GAIN = 0.05  # an order other than the one asked for must be predicted to save this share: predictions are rough
HOLD_S_PER_BYTE = 1e-9  # to read back what was held in a file; a copy in memory costs a fifth of it
HELD_BYTES = 1 << 30  # what may be held at once for the sake of an order


def finishes(costs: Sequence[float], order: Sequence[int], workers: int) -> list[float]:
    """When each is done (by its index) if whoever of `workers` is free takes the next in `order`.

    >>> finishes([1.0, 1.0, 3.0], [2, 0, 1], workers=2)
    [1.0, 2.0, 3.0]
    """
    free, ends = [0.0] * workers, [0.0] * len(costs)
    for i in order:
        ends[i] = heapq.heappop(free) + costs[i]
        heapq.heappush(free, ends[i])
    return ends


def early(ends: Sequence[float]) -> int:
    """How many are done before one that was asked before them.

    >>> early([1.0, 3.0, 2.0, 2.5])
    2
    """
    latest, count = 0.0, 0
    for end in ends:
        count += end < latest
        latest = max(latest, end)
    return count


def arrange(costs: Sequence[float], workers: int, size_bytes: int = 0) -> list[int]:
    """Indices in the order to hand out: as given, or the largest first where that ends sooner by more than it costs.

    `costs` in seconds; `size_bytes`: of one update. The rule: with T the makespan and E the number of early ones of
    either order, largest first if T + E * size * HOLD_S_PER_BYTE is by GAIN less, and E * size at most HELD_BYTES.

    >>> arrange([1.0, 1.0, 1.0, 1.0], workers=2)
    [0, 1, 2, 3]
    >>> arrange([1.0, 1.0, 1.0, 3.0], workers=2)
    [3, 0, 1, 2]
    >>> arrange([1.0, 2.0, 3.0, 3.0, 3.0], workers=2), arrange([1.0, 2.0, 3.0, 3.0, 3.0], workers=2, size_bytes=1 << 30)
    ([2, 3, 4, 1, 0], [0, 1, 2, 3, 4])
    """
    given = list(range(len(costs)))
    if workers < 2 or len(costs) <= workers:  # nobody waits for a turn
        return given
    largest = sorted(given, key=lambda i: -costs[i])
    price, held = [0.0, 0.0], 0
    for which, order in enumerate((given, largest)):
        ends = finishes(costs, order, workers)
        held = early(ends)
        price[which] = max(ends) + held * size_bytes * HOLD_S_PER_BYTE
    worth = price[1] < (1 - GAIN) * price[0] and held * size_bytes <= HELD_BYTES
    return largest if worth else given


def grouped(sizes: Sequence[float], at_once: int) -> list[list[int]]:
    """Indices in groups of up to `at_once` that are computed as one: neighbours, or likes where neighbours differ much.

    A group costs its length times its largest, as all its members are padded to it; groups of likes are taken if they
    save GAIN of that.

    >>> grouped([5, 5, 5, 5, 5], at_once=2)
    [[0, 1], [2, 3], [4]]
    >>> grouped([1, 9, 1, 9], at_once=2)
    [[0, 2], [1, 3]]
    """
    given = range(len(sizes))
    if at_once == 1:
        return [[i] for i in given]
    ways = []
    for order in (list(given), sorted(given, key=lambda i: -sizes[i])):
        ways.append([sorted(order[i : i + at_once]) for i in range(0, len(order), at_once)])
    padded = [sum(len(group) * max(sizes[i] for i in group) for group in way) for way in ways]
    return sorted(ways[1]) if padded[1] < (1 - GAIN) * padded[0] else ways[0]


def portion(costs: Sequence[float], left: int, workers: int, within_s: float) -> int:
    """How many of the next `costs` (seconds, in the order of the queue) to give a worker in one message.

    As many as fill `within_s`, one at the least; never more than half a fair share of the `left` that are queued, so that
    portions shrink as the end comes near (guided self-scheduling, Polychronopoulos and Kuck 1987).

    >>> portion([0.001] * 50, left=50, workers=2, within_s=0.005)
    5
    >>> portion([0.001] * 6, left=6, workers=2, within_s=0.005), portion([60.0] * 9, left=9, workers=2, within_s=0.005)
    (2, 1)
    """
    most, spent, count = -(-left // (2 * workers)), 0.0, 0
    for cost in costs[:most]:
        spent += cost
        if count and spent > within_s * 1.001:
            break
        count += 1
    return max(count, 1)
