"""A fleet in a job file: checked, planned and built as the rest of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atoll.errors import JobError
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.plan import rows
from atoll.job.text import parse
from atoll.types import ClientId
from tests.job.digits import JOB

pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'atoll[data]'")


def test_a_fleet_with_its_energy_is_built_and_runs_in_virtual_time() -> None:
    job = check(
        parse(
            JOB,
            overrides=["rounds=2", 'fleet={name="lognormal", sigma=0.0, example_s=2.0, energy={name="handset", train_w=7.0}}'],
        )
    )
    assert (
        dict(rows(job))["fleet"]
        == "lognormal (sigma 0.0, example_s 2.0, energy handset (train_w 7.0)); time, energy and CO2e are simulated"
    )
    federation = build(job)
    assert federation.fleet is not None
    assert federation.fleet.energy.train_w == 7.0
    record = federation.run(2).record()
    (first, last) = [p.value for p in record.series if p.name == "clock_s"]
    most = max(len(splits["train"]) for splits in federation.data.clients.values())
    assert first == pytest.approx(2.0 * most, rel=0.01), "two seconds an example of the largest client, and hardly any transfer"
    assert last == pytest.approx(2 * first, rel=0.01)
    assert "7 W computing" in str(record.config["fleet"])


def test_the_seed_of_the_job_is_the_fleet_s() -> None:
    devices = []
    for sets in (["seed=1"], ["seed=2"], ["seed=1", 'fleet={name="lognormal", seed=2}']):
        fleet = build(check(parse(JOB, overrides=['fleet="lognormal"', *sets]))).fleet
        assert fleet is not None
        devices.append(fleet.device(ClientId("client-0")))
    assert devices[0] != devices[1]
    assert devices[1] == devices[2]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ('"phone"', "no fleet is called 'phone'; did you mean 'phones'"),
        ('{name="phones", speed=3}', "phones has no parameter 'speed'"),
        ('{name="phones", offline="waits"}', "must be 'lost' or 'pauses'"),
        ('{name="phones", energy="hanset"}', "did you mean 'handset'"),
        ('{name="trace"}', "path is missing"),
        ('{name="lognormal", sigma=-1.0}', r"\[fleet\] lognormal sigma = -1.0"),
        ('{name="phones", energy={name="handset", idle_w=-1.0}}', r"\[fleet.energy\] handset idle_w = -1.0"),
        ('{name="trace", path="nowhere.csv"}', "there is no such file"),
    ],
)
def test_what_a_job_may_have_wrong(given: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=says):
        check(parse(JOB, overrides=[f"fleet={given}"]))


def test_a_line_of_a_trace_that_is_wrong_is_told_by_a_check(tmp_path: Path) -> None:
    (tmp_path / "fleet.csv").write_text("client,example_s,down,up\na,1,1,fast\n")
    with pytest.raises(JobError, match=r"fleet\.csv, line 2: up = 'fast'"):
        check(parse(JOB, overrides=[f'fleet={{name="trace", path="{tmp_path / "fleet.csv"}"}}']))


def test_checking_a_fleet_does_not_load_torch(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB + '[fleet]\nname = "phones"\n')
    load = f"from atoll.job.build import load_job; load_job({str(tmp_path / 'job.toml')!r})"
    program = f"import sys; {load}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
