"""What a fleet is: for each client its device, and when that device is there; what its watts and bytes cost.

A fleet is made of pure functions of (seed, client), so that nothing is held for clients that are not at work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from atoll.errors import ConfigError
from atoll.types import ClientId

Offline: TypeAlias = Literal["lost", "pauses"]  # what becomes of work whose device goes away


class Device(NamedTuple):
    """One client's machine."""

    example_s: float  # seconds of computing for one example, once read
    down: float  # bytes/s to it
    up: float  # bytes/s from it


class Energy(NamedTuple):
    """What a trip draws and what that emits; every value derived from it is simulated, not measured."""

    train_w: float  # of the device while it computes
    radio_w: float  # of the device while it sends or receives
    idle_w: float  # of the device while it waits for its own next session
    network_kwh_per_gb: float  # of the network, for each 10^9 bytes
    grid_g_per_kwh: float  # CO2e


class Fleet(NamedTuple):
    """The devices of a federation."""

    name: str
    device: Callable[[ClientId], Device]
    session: Callable[[ClientId, float], tuple[float, float]]  # (begin, end) of the session then, else of the next; inf: none
    online: Callable[[Sequence[ClientId], float], Sequence[ClientId]]  # who of these is in a session then, in their order
    energy: Energy
    offline: Offline
    about: str  # every constant, for a person


class Spent(NamedTuple):
    """What a trip cost, or many of them together; joules and grams are simulated."""

    trips: int = 0
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    device_j: float = 0.0
    network_j: float = 0.0
    co2e_g: float = 0.0

    @property
    def energy_j(self) -> float:
        """Device and network together."""
        return self.device_j + self.network_j

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        trips, *sums = (a + b for a, b in zip(self, other, strict=True))
        return Spent(int(trips), *sums)


def spent(
    energy: Energy, compute_s: float, transfer_s: float, wait_s: float, bytes_down: float = 0.0, bytes_up: float = 0.0
) -> Spent:
    """One trip: E = P_train t + P_radio t_radio + P_idle t_wait + kWh/GB x bytes, and CO2e = E x grid.

    >>> one = spent(Energy(3.0, 1.0, 0.5, 0.01, 500.0), 10.0, 4.0, 2.0, 1e9)
    >>> one.device_j, one.network_j, round(one.co2e_g, 6)
    (35.0, 36000.0, 5.004861)
    """
    device_j = energy.train_w * compute_s + energy.radio_w * transfer_s + energy.idle_w * wait_s
    network_j = energy.network_kwh_per_gb * 3.6e6 * (bytes_down + bytes_up) / 1e9
    return Spent(1, bytes_down, bytes_up, device_j, network_j, (device_j + network_j) / 3.6e6 * energy.grid_g_per_kwh)


def always(client: ClientId, at_s: float) -> tuple[float, float]:
    """The session of a device that never leaves."""
    return -math.inf, math.inf


def everybody(clients: Sequence[ClientId], at_s: float) -> Sequence[ClientId]:
    """Who is online in a fleet that never leaves."""
    return clients


def checked(kind: str, **above_0: float) -> None:
    """Raises ConfigError for the first value that is not a finite number above 0.

    >>> checked("phones", example_s=0.1)
    """
    for name, value in above_0.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{kind} {name} = {value}: must be a finite number above 0")
