"""What a coordinator refused is on record once, and a flood or a full disk costs no more than a count."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from atoll.deploy import audit
from atoll.deploy.refusals import Refusals, refusals_in
from atoll.deploy.verify import records, verify
from atoll.types import ClientId, Event


def told(folder: Path) -> list[tuple[str, object]]:
    found = [each for each in records(folder / "audit.jsonl") if each["event"] == "refused"]
    return [(each["peer"], each.get("why", each.get("unwritten"))) for each in found]


def test_a_flood_fills_no_disk_and_hides_nobody_else(tmp_path: Path) -> None:
    now = [0.0]
    refusals = Refusals(audit.AuditLog(tmp_path / "audit.jsonl"), most=3, window_s=60.0, now=lambda: now[0])
    for n in range(1000):
        refusals.note("south", "Have x", f"no {n}")
    refusals.note("north", "Have y", "neither")
    now[0] = 61.0
    refusals.note("south", "Have x", "again")
    refusals.close()
    three = [("south", "no 0"), ("south", "no 1"), ("south", "no 2")]
    assert told(tmp_path) == [*three, ("north", "neither"), ("south", 997), ("south", "again")]
    assert verify(tmp_path / "audit.jsonl").findings == ()


def test_a_full_disk_is_told_of_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, real = refusals_in(tmp_path), audit.os.write

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit.os, "write", full)
    refusals.note("south", "Have x", "no")
    refusals.note("south", "Have x", "no")
    monkeypatch.setattr(audit.os, "write", real)
    refusals.close()
    assert told(tmp_path) == [("south", 2)]


def test_what_a_peer_has_written_is_one_line_of_the_log(tmp_path: Path) -> None:
    refusals = refusals_in(tmp_path)
    refusals.note("south\n", "Have \x1b[2J" + "x" * 100_000, "no\r\nyes")
    (record,) = [each for each in records(tmp_path / "audit.jsonl") if each["event"] == "refused"]
    assert (record["peer"], record["why"]) == ("south?", "no??yes")
    assert len(record["what"]) < 2000
    assert "\x1b" not in record["what"]


def test_a_rejected_answer_is_noted_and_a_failure_is_not(tmp_path: Path) -> None:
    sink = refusals_in(tmp_path).sink("trial-1")
    for text in ("error: no GPU", "invalid: these bytes are no frame", "not_finite: its update is NaN", "lost: offline"):
        sink.emit(Event("failure", 2, "train", ClientId("client-1"), text=text))
    sink.emit(Event("update", 2, "train", ClientId("client-2")))
    assert [why for _, why in told(tmp_path)] == ["invalid: these bytes are no frame", "not_finite: its update is NaN"]
