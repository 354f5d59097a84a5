"""Phones, drawn from the aggregate facts that are published of real ones: who is fast, who is online, and for how long.

Compute (978 readings of one image through a ResNet): median 0.172 s; sigma 0.69 meets their 5th and 95th percentile within
7 %. Links: lognormal, sigma 0.47 down, 0.68 up; their medians are ours to assume. Sessions: 2.7 a day each, lognormal, over
all devices mu 5.06 and sigma 2.59 in seconds; share of the time online: median 5.5 %, P75 13 %, P95 33 %, mean 9.5 %; from the
best hour to the worst 2.1 times as many.

A device begins one session in each cycle, at a random moment of it, for L = exp(mu_i + 2.475 z) seconds, at most a cycle. A
cycle is a day / 2.7 for the median device and shorter for those that are online more, by the power 0.7 of their share of
the time; mu_i is what gives that share, E[min(L, cycle)] / cycle. 2.475 is the sigma for which the median device has mu 5.06,
and 0.7 the power for which the lengths over all devices have sigma 2.59. More sessions begin by day than by night: beginnings
are spaced evenly not in time t but in t + A D / (2 pi) sin(2 pi t / D), with A set so that those online vary by 2.1. All is a
function of (seed, client, cycle): any moment of any device can be asked for without what went before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from atoll.errors import ConfigError
from atoll.fleets import energy as energies
from atoll.fleets.draws import Keys, Reals, keys, normal, uniform
from atoll.fleets.fleet import Device, Energy, Fleet, Offline, checked
from atoll.types import ClientId

DAY_S = 86_400.0
SHARES = ((0.5, 0.055), (0.75, 0.13), (0.95, 0.33))  # quantiles of the share of the time that a device is online
BELOW, MOST = 1.5, 0.8  # sigma of the lower half, which gives the mean of 9.5 %; nobody is online all the time
SPREAD = 2.475  # sigma of one device's session lengths
BUSIER = 0.7  # sessions a day go with this power of the share of the time
SWING = 1.08  # the swing of beginnings over that of those online, whose long sessions reach into the night
AT_ONCE = 4096  # devices worked out in one go: their draws fit a cache, and memory does not follow a fleet's size
COMPUTE, DOWN, UP, LENGTH, MOMENT = range(5)  # places of draws


def phones(
    example_s: float = 0.172,
    compute_sigma: float = 0.69,
    down: float = 2.5e6,
    down_sigma: float = 0.47,
    up: float = 7.5e5,
    up_sigma: float = 0.68,
    sessions_a_day: float = 2.7,
    day_over_night: float = 2.1,
    offline: Offline = "lost",
    energy: Energy | None = None,
    seed: int = 0,
) -> Fleet:
    """Phones that come and go: lognormal speeds and links, 2.7 sessions a day, online 5.5 % of the time in the median.

    `example_s`: median seconds an example; `down`, `up`: median bytes/s. `offline`: work whose phone goes away is "lost",
    or "pauses" until its next session.

    Raises ConfigError for a value out of range.

    >>> fleet = phones()
    >>> begins, ends = fleet.session("anybody", 0.0)
    >>> begins < ends and ends > 0
    True
    """
    checked("phones", example_s=example_s, down=down, up=up, sessions_a_day=sessions_a_day, day_over_night=day_over_night)
    for name, sigma in (("compute_sigma", compute_sigma), ("down_sigma", down_sigma), ("up_sigma", up_sigma)):
        if not 0 <= sigma < math.inf:
            raise ConfigError(f"phones {name} = {sigma}: must be a finite number of 0 or more")
    if offline not in ("lost", "pauses"):
        raise ConfigError(f"phones offline = {offline!r}: must be 'lost' or 'pauses'")
    swing = SWING * (day_over_night - 1) / (day_over_night + 1)
    if not 0 <= swing < 1:
        raise ConfigError(f"phones day_over_night = {day_over_night}: must be from 1 to 5")
    drawn = energies.handset() if energy is None else energy

    def device(client: ClientId) -> Device:
        key = keys([client], seed)
        drawn_s, drawn_down, drawn_up = (float(normal(key, place)[0]) for place in (COMPUTE, DOWN, UP))
        return Device(
            example_s * math.exp(compute_sigma * drawn_s),
            down * math.exp(down_sigma * drawn_down),
            up * math.exp(up_sigma * drawn_up),
        )

    spans = sessions(DAY_S / sessions_a_day, swing)

    def online(clients: Sequence[ClientId], at_s: float) -> Sequence[ClientId]:
        found: list[ClientId] = []
        for first in range(0, len(clients), AT_ONCE):
            some = clients[first : first + AT_ONCE]
            begin, end = spans(keys(some, seed), at_s)
            there = ((begin <= at_s) & (at_s < end)).any(axis=0)
            found += [some[i] for i in np.flatnonzero(there).tolist()]
        return found

    def session(client: ClientId, at_s: float) -> tuple[float, float]:
        key, found = keys([client], seed), (math.inf, math.inf)
        while True:  # a session that begins before another has ended prolongs it
            begin, end = (each[:, 0] for each in spans(key, at_s))
            open_ = (begin <= at_s) & (at_s < end)
            if open_.any():
                found = (min(found[0], float(begin[open_].min())), float(end[open_].max()))
                at_s = found[1]
            elif math.isfinite(found[1]):
                return found
            else:
                at_s = float(begin[begin > at_s].min())

    about = (
        f"phones: median {example_s:g} s an example (sigma {compute_sigma:g}), {down:g} bytes/s down ({down_sigma:g}), "
        f"{up:g} up ({up_sigma:g}); {sessions_a_day:g} sessions a day, by day {day_over_night:g} times as many as by night, "
        f"work of a phone that goes away {'is lost' if offline == 'lost' else 'pauses'}; {energies.said(drawn)} (simulated)"
    )
    return Fleet("phones", device, session, online, drawn, offline, about)


def share_online(u: Reals) -> Reals:
    """The share of the time that a device is online, at quantile u: through SHARES, lognormal between and beyond them.

    >>> share_online(np.array([0.5, 0.75])).round(4).tolist()
    [0.055, 0.13]
    """
    z = np.array([NormalDist().inv_cdf(float(each)) for each in u])
    at = np.array([NormalDist().inv_cdf(quantile) for quantile, _ in SHARES])
    logs = np.log([share for _, share in SHARES])
    beyond = logs[-1] + (z - at[-1]) * (logs[-1] - logs[-2]) / (at[-1] - at[-2])
    inside = np.where(z < 0, logs[0] + BELOW * z, np.interp(z, at, logs))
    return np.asarray(np.minimum(np.exp(np.where(z > at[-1], beyond, inside)), MOST))


def sessions(cycle_s: float, swing: float) -> Callable[[Keys, float], tuple[Reals, Reals]]:
    """(begin, end), each of shape (4, n), of the sessions of n devices that are on at a moment, or begin next."""
    quantiles, log_cycles, means = _lengths(cycle_s)
    hours = np.linspace(0.0, DAY_S, 1441)
    paced = hours + swing * DAY_S / (2 * math.pi) * np.sin(2 * math.pi * hours / DAY_S)

    def spans(key: Keys, at_s: float) -> tuple[Reals, Reals]:
        quantile, (days, rest) = uniform(key, LENGTH), divmod(at_s, DAY_S)
        cycle = np.exp(np.interp(quantile, quantiles, log_cycles))
        last = np.floor((days * DAY_S + np.interp(rest, hours, paced)) / cycle).astype(np.int64)
        # A session is at most a cycle long, but two cycles may begin within that time where few sessions do.
        cycles = last + np.arange(-2, 2)[:, None]
        begins = (cycles + uniform(key, MOMENT, cycles)) * cycle
        day = np.floor(begins / DAY_S)
        begin = day * DAY_S + np.interp(begins - day * DAY_S, paced, hours)
        length = np.exp(np.interp(quantile, quantiles, means) + SPREAD * normal(key, LENGTH, cycles))
        return begin, begin + np.minimum(length, cycle)

    return spans


@functools.cache
def _lengths(cycle_s: float) -> tuple[Reals, Reals, Reals]:
    """(quantiles, log of the cycle, mean of log session lengths) over devices; `cycle_s` is that of the median device."""
    quantiles = np.linspace(0.0, 1.0, 2049)[1:-1]
    shares = share_online(quantiles)
    log_cycles = math.log(cycle_s) - BUSIER * np.log(shares / SHARES[0][1])
    over_cycle = np.linspace(-40.0, 30.0, 2801)  # mean of log length, less the log of the cycle
    cdf = np.vectorize(NormalDist().cdf)
    found = np.exp(over_cycle + SPREAD**2 / 2) * cdf(-over_cycle / SPREAD - SPREAD) + 1 - cdf(-over_cycle / SPREAD)
    return quantiles, log_cycles, log_cycles + np.interp(shares, found, over_cycle)
