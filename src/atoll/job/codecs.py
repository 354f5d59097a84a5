"""How much smaller codecs make what crosses the network, by what they say of themselves (TRAFFIC), each way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from atoll import catalog
from atoll.job.schema import Job, Named
from atoll.job.text import Spot
from atoll.job.together import within

FLOAT_BYTES = 4  # parameters cross the network as fp32 unless a codec says otherwise


def broadcast(job: Job, asked: int | None, clients: int | None) -> float:
    """Bytes of what a client is sent over those of the model, the mean over a run with random cohorts.

    A client that was asked g rounds ago, with the probability p (1 - p)^(g-1), is sent g steps if they are smaller than the
    model; who was never asked, the model.
    """
    if job.broadcast is None:
        return 1.0
    step = share(within(job.broadcast, ("broadcast",)))
    asked_now = min(asked / clients, 1.0) if asked and clients else 1.0
    missed, most = 1.0 - asked_now, max(math.ceil(1 / step) - 1, 0)  # steps that are together smaller than the model
    later = sum(asked_now * missed ** (g - 1) * g * step for g in range(1, most + 1)) + missed**most
    first = (1 - missed**job.rounds) / (asked_now * job.rounds)
    return first + (1 - first) * later


def share(links: Iterable[tuple[Spot, Named]]) -> float:
    """Bytes of an encoded update over those of the same in fp32: each codec works on the values that the one before it leaves.

    Of the bits of a codec `beside` (positions, say) are no values, and stay as they are.
    """
    left = 1.0
    for _, given in reversed(list(links)):
        entry = catalog.find("transform", given.name)
        bits, beside = _bits(entry, given), _per(entry, given) * float(entry.traffic.get("beside", 0.0))
        left = (beside + (bits - beside) * left) / (8 * FLOAT_BYTES)
    return left


def _per(entry: catalog.Entry, given: Named) -> float:
    """The value of the parameter that a codec's TRAFFIC names as `per`, 1 where it names none."""
    if "per" not in entry.traffic:
        return 1.0
    parameter = entry.parameter(entry.traffic["per"])
    return float(given.parameters.get(entry.traffic["per"], parameter.default if parameter else 1.0))


def _bits(entry: catalog.Entry, given: Named) -> float:
    """Bits a value after a codec, as its literal TRAFFIC says: `bits`, times the parameter named by `per`, or by `points`.

    `points`: pairs of that parameter and the bits measured there, between which it is interpolated.
    """
    traffic = entry.traffic
    if "per" not in traffic:
        return float(traffic.get("bits", 8 * FLOAT_BYTES))
    at = _per(entry, given)
    if "points" not in traffic:
        return float(traffic["bits"]) * at
    points = sorted(traffic["points"])
    if at <= points[0][0]:
        return float(points[0][1])
    for (x, low), (y, high) in pairwise(points):
        if at <= y:
            return float(low + (high - low) * (at - x) / (y - x))
    return float(points[-1][1])
