"""Killed in the middle of an append, at any byte of it, a writer loses no record that was told to be written.

The child writes a record in pieces, as a slow disk may, and says aloud each record once `append` has returned.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atoll.deploy.audit import AuditLog
from atoll.deploy.verify import records, verify

WRITER = """
import os, sys, time
from atoll.deploy import audit

real = os.write
def slowly(file, data):
    if file == 1:
        return real(file, data)
    time.sleep(2e-4)  # a kill falls between the pieces of a record
    return real(file, bytes(data)[:40])

audit.os.write = slowly
log = audit.AuditLog(sys.argv[1])
for n in range(100000):
    record = log.append("left", n=n, writer=os.getpid(), more="x" * 600)
    real(1, b"%d\\n" % record["seq"])
"""


def lived(path: Path, delay_s: float) -> list[int]:
    """The records that a writer said it had written before it was killed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
    return [int(line) for line in (first + rest).splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.slow
def test_killed_at_random_moments_no_record_is_lost(tmp_path: Path) -> None:
    rng, path = random.Random(20261122), tmp_path / "audit.jsonl"
    said: list[int] = []
    for _ in range(12):
        said += lived(path, rng.uniform(0, 0.03))
    verdict = verify(path)
    torn = [finding for finding in verdict.findings if "a crash left" in finding.text]
    assert len(torn) == len(verdict.findings) <= 1, verdict.findings  # only what the last kill left
    written = [record["seq"] for record in records(path)]
    assert written == list(range(len(written)))
    assert said == sorted(set(said))
    assert set(said) <= set(written)
    AuditLog(path)
    assert verify(path).findings == ()
    assert sum(record["event"] == "mended" for record in records(path)) >= 1, "no kill fell into an append"
