"""One job's state at the coordinator: what it keeps for a restart, and what it does not keep for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.remote import desk
from atoll.remote.desk import Desk
from atoll.remote.values import Place
from tests.remote.ends import JOB, NORTH, SOUTH


def test_what_is_confirmed_leaves_the_file_and_what_is_not_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_MOST_LINES", 20)
    here, silent = Desk(JOB, tmp_path), Place(0, SOUTH, "train")
    here.settle(silent, "ab", "south", False)
    for round in range(200):
        place = Place(round, NORTH, "train")
        here.settle(place, "cd", "north", True)
        here.confirm(place, "cd", "north")
    assert len((tmp_path / "settled.jsonl").read_text().splitlines()) < 40
    assert Desk(JOB, tmp_path).settled == here.settled == {(silent, "ab"): ("south", False)}
