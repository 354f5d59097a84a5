"""A coordinator, a relay, its two sites and a site beside it, each a process: the relay is killed, and the bits are the same."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.deploy.jobs import DIGITS
from tests.deploy.regions.test_relay import REGION, TOP_K, TWO, region_of, simulated
from tests.deploy.test_machines import Machine, join, machines, port

__all__ = ["machines"]  # the fixture


@pytest.mark.slow
def test_a_killed_relay_ends_in_the_same_bits(tmp_path: Path, machines: list[Machine]) -> None:
    chance = random.Random("relay")
    text = DIGITS.format(algorithm="scaffold", rounds=4).replace("lr = 0.1", "lr = 0.1\nepochs = 4") + TOP_K + TWO
    (tmp_path / "two.toml").write_text(text)
    (tmp_path / "region.toml").write_text(REGION.format(min_updates=3, patience_s=120.0))
    above, below = (f"127.0.0.1:{port()}" for _ in range(2))
    words = ["relay", above, "--site", "relay", "--region", "region.toml", "--listen", below]
    words += ["--insecure-loopback", "--jobs", "1"]
    coordinator = Machine(tmp_path, "serve", "two.toml", "--listen", above, "--runs", "runs", "--insecure-loopback")
    machines += [coordinator, relay := Machine(tmp_path, *words)]
    machines += [harbour := join(tmp_path, below, "harbour"), join(tmp_path, below, "island"), join(tmp_path, above, "south")]
    harbour.wait_for(": answered", 5)  # of two a round: its other client and the other site are at work
    time.sleep(chance.uniform(0.0, 0.05))
    relay.kill()
    machines.remove(relay)
    machines.append(Machine(tmp_path, *words))
    told = "".join(line for each in machines for line in each.told)
    assert [each.ended() for each in machines] == [0] * 5, told
    found = load_file(next((tmp_path / "runs").glob("*/model/model.safetensors")))
    expected = simulated(text, region_of(min_updates=3))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
