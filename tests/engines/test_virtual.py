"""Virtual time: an engine's laws, the order of landing, sessions and leases, what is not computed, resuming to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from atoll.engines.processes import processes
from atoll.engines.serial import serial
from atoll.engines.virtual import Virtual
from atoll.fleets.energy import handset
from atoll.fleets.fleet import Device, Fleet, always, everybody
from atoll.fleets.steady import lognormal, uniform
from atoll.store.memories import Kept
from atoll.testing.engine import check_engine
from atoll.types import ClientId, Engine, Examples, Local


@pytest.mark.parametrize("ahead", [1, 16])
@pytest.mark.parametrize("inner", [serial, partial(processes, workers=2)], ids=["serial", "processes"])
def test_an_engine_in_virtual_time_obeys_the_laws(inner: Any, ahead: int) -> None:
    def make(locals_: Mapping[str, Local[Any]], clients: Mapping[ClientId, Mapping[str, Examples]], memories: Kept) -> Engine:
        fleet = lognormal(example_s=1e-5, down=1e9, up=1e9)
        return Virtual(inner(locals_, clients, memories), locals_, clients, fleet, ahead=ahead)

    check_engine(make)
