from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atoll.identity.authority import Authority, create

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    """A time that stands still: nothing here depends on the machine's clock."""
    return NOW


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create(tmp_path / "pki", "trial.example", ["localhost", "127.0.0.1"], now=NOW - timedelta(days=1))


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """Another authority that calls itself the same."""
    return create(tmp_path / "other", "trial.example", ["localhost", "127.0.0.1"], now=NOW - timedelta(days=1))
