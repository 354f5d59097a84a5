"""What devices and the network draw, as settings: assumed round figures, to be replaced by those of one's own machines."""

from __future__ import annotations

import math

from atoll.errors import ConfigError
from atoll.fleets.fleet import Energy


def handset(
    train_w: float = 3.0,
    radio_w: float = 1.0,
    idle_w: float = 0.05,
    network_kwh_per_gb: float = 0.05,
    grid_g_per_kwh: float = 480.0,
) -> Energy:
    """A phone: 3 W computing, 1 W at its radio; a mobile network of 0.05 kWh/GB; a grid of 480 g CO2e/kWh.

    >>> handset(grid_g_per_kwh=50.0).train_w
    3.0
    """
    return _energy("handset", train_w, radio_w, idle_w, network_kwh_per_gb, grid_g_per_kwh)


def workstation(
    train_w: float = 300.0,
    radio_w: float = 60.0,
    idle_w: float = 60.0,
    network_kwh_per_gb: float = 0.005,
    grid_g_per_kwh: float = 480.0,
) -> Energy:
    """A machine with a GPU: 300 W computing, 60 W otherwise; a fixed line of 0.005 kWh/GB; a grid of 480 g CO2e/kWh.

    >>> workstation().idle_w
    60.0
    """
    return _energy("workstation", train_w, radio_w, idle_w, network_kwh_per_gb, grid_g_per_kwh)


def said(energy: Energy) -> str:
    """Every constant, for a person.

    >>> said(handset())
    '3 W computing, 1 W sending, 0.05 W waiting, 0.05 kWh/GB of network, 480 g CO2e/kWh'
    """
    return (
        f"{energy.train_w:g} W computing, {energy.radio_w:g} W sending, {energy.idle_w:g} W waiting, "
        f"{energy.network_kwh_per_gb:g} kWh/GB of network, {energy.grid_g_per_kwh:g} g CO2e/kWh"
    )


def _energy(kind: str, *values: float) -> Energy:
    energy = Energy(*values)
    for name, value in energy._asdict().items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{kind} {name} = {value}: must be a finite number of 0 or more")
    return energy
