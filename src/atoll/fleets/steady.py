"""Fleets whose devices are always there: all alike, or with speeds that are lognormal."""

from __future__ import annotations

import math

from atoll.errors import ConfigError
from atoll.fleets import energy as energies
from atoll.fleets.draws import keys, normal
from atoll.fleets.fleet import Device, Energy, Fleet, always, checked, everybody
from atoll.types import ClientId


def uniform(example_s: float = 0.01, down: float = 1.25e7, up: float = 1.25e7, energy: Energy | None = None) -> Fleet:
    """Devices all alike and always there: `example_s` seconds an example, links of `down` and `up` bytes/s.

    >>> uniform(example_s=0.5).device("anybody").example_s
    0.5
    """
    checked("uniform", example_s=example_s, down=down, up=up)
    drawn = energies.workstation() if energy is None else energy
    one = Device(example_s, down, up)
    about = f"all alike: {example_s:g} s an example, {down:g} bytes/s down, {up:g} up; {energies.said(drawn)} (simulated)"
    return Fleet("uniform", lambda client: one, always, everybody, drawn, "lost", about)


def lognormal(
    sigma: float = 0.93,
    example_s: float = 0.01,
    down: float = 1.25e7,
    up: float = 1.25e7,
    energy: Energy | None = None,
    seed: int = 0,
) -> Fleet:
    """Devices always there whose seconds an example are lognormal: median `example_s`, `sigma` of the logarithm.

    0.93 is the spread of the floating-point scores of 333 phones.

    >>> fleet = lognormal(sigma=0.0, example_s=0.25)
    >>> fleet.device("anybody").example_s
    0.25
    """
    checked("lognormal", example_s=example_s, down=down, up=up)
    if not 0 <= sigma < math.inf:
        raise ConfigError(f"lognormal sigma = {sigma}: must be a finite number of 0 or more")
    drawn = energies.workstation() if energy is None else energy

    def device(client: ClientId) -> Device:
        return Device(example_s * math.exp(sigma * float(normal(keys([client], seed), 1)[0])), down, up)

    about = (
        f"lognormal: median {example_s:g} s an example, sigma {sigma:g}; {down:g} bytes/s down, {up:g} up; "
        f"{energies.said(drawn)} (simulated)"
    )
    return Fleet("lognormal", device, always, everybody, drawn, "lost", about)
