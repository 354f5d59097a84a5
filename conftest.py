"""What holds for every test and every example: one thread a process, no hub, no screen, no trace in the work tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Set before torch is imported. Tests share the cores among themselves, and processes that they start inherit it.
os.environ.update(
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    NO_COLOR="1",
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="passive",
    RAY_AUTH_MODE="token",  # read when ray is imported; the token is that of tests, and no file of a person's home
    RAY_AUTH_TOKEN="0123456789abcdef" * 4,
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
)

# A person's own settings; the cache of what was fetched is shared.
for mine in ("ATOLL_STORE", "ATOLL_DEBUG", "ATOLL_LOG_FORMAT", "ATOLL_OFFLINE", "RAY_ADDRESS"):
    os.environ.pop(mine, None)

# The same examples in every run: a test that fails, fails again. `--hypothesis-profile=wide` looks further.
quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("atoll", deadline=None, derandomize=True, max_examples=50, suppress_health_check=quiet)
settings.register_profile("wide", deadline=None, max_examples=2_000, suppress_health_check=quiet)
settings.load_profile("atoll")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, so that nothing is written to, or read from, the folder that pytest was started in."""
    monkeypatch.chdir(tmp_path)
