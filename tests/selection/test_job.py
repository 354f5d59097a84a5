"""The section [selection] of a job: checked with its line, counted in the plan, built and run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from atoll import catalog
from atoll.errors import JobError
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.plan import plan, rows
from atoll.job.text import parse
from atoll.store.record import Record
from tests.job import digits

pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'atoll[data]'")

JOB = digits.JOB.replace("clients = 4", "clients = 6") + '[policy]\nname = "synchronous"\nclients_per_round = 2\n'
MODEL = (64 * 4 + 4 + 4 * 10 + 10) * 4


def tensor_bytes(record: Record) -> float:
    """Sent both ways, without what frames add to tensors."""
    sign = {"bytes_down": 1, "bytes_up": 1, "header_down": -1, "header_up": -1}
    return sum(sign[p.name] * p.value for p in record.series if p.client and p.name in sign)


@pytest.mark.parametrize("name", [entry.name for entry in catalog.entries("selection")])
def test_every_rule_runs_from_a_job(name: str) -> None:
    job = check(parse(JOB, overrides=[f"selection={name}"]))
    federation = build(job)
    assert federation.selection is not None
    assert federation.selection.name == name
    record = federation.run(job.rounds).record()
    heard = [(p.round, p.client) for p in record.series if p.work == "train" and p.name == "loss" and p.client]
    assert len(set(heard)) == len(heard) == 6
    assert plan(job).total_bytes == tensor_bytes(record)


@pytest.mark.parametrize(
    ("sets", "probed"),
    [
        ([], 4),
        (["selection.d=5"], 5),
        (["selection.d=2"], 2),
        (["selection.losses=last"], 0),
        (["policy.clients_per_round=4"], 6),  # twice as many are wanted, but there are six
    ],
)
def test_the_plan_counts_the_probe(sets: list[str], probed: int) -> None:
    job = check(parse(JOB, overrides=["selection.name=power_of_choice", *sets]))
    figures = plan(job)
    asked = 4 if "policy.clients_per_round=4" in sets else 2
    assert figures.probed == probed
    assert figures.total_bytes == 3 * MODEL * (2 * asked + probed)
    assert (f"{probed} clients judge the model" in dict(rows(job))["selection"]) == (probed > 0)
    record = build(job).run(job.rounds).record()
    assert tensor_bytes(record) == figures.total_bytes


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["selection=ort"], r"selection=ort: \[selection\] no selection is called 'ort'; did you mean 'oort'\?"),
        (["selection.name=oort", "selection.alfa=2"], r"\[selection\] oort has no parameter 'alfa'; did you mean 'alpha'\?"),
        (["selection.name=fair", "selection.by=most"], r"\[selection\] by = \"most\": must be 'least' or 'lottery'"),
        (["selection.name=tifl", "selection.tiers=0"], r"\[selection\] tifl tiers = 0.*must be 1 or more"),
        (["selection.name=power_of_choice", "selection.d=1"], r"\[selection\] d = 1: must be 2 or more, the clients of a round"),
        (
            ["selection=importance", "policy.name=over_selecting"],
            r"\[selection\] selection 'importance' weighs.*policy synchronous",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(sets: list[str], told: str) -> None:
    with pytest.raises(JobError, match=told):
        check(parse(JOB, "job.toml", sets))


def test_seed_and_task_come_from_the_job() -> None:
    parameters = {e.name: {p.name for p in e.parameters} for e in catalog.entries("selection")}
    assert {name for name, known in parameters.items() if "seed" in known} == {"importance", "oort", "tifl", "fair"}
    assert {name for name, known in parameters.items() if "task" in known} == {"power_of_choice"}
    with pytest.raises(JobError, match="'task'"):
        check(parse(JOB, overrides=["selection.name=power_of_choice", "selection.task=digits"]))


def test_checking_a_selection_imports_nothing_heavy() -> None:
    job = JOB + '[selection]\nname = "tifl"\n'
    program = (
        "import sys; from atoll.job.check import check; from atoll.job.text import parse; "
        f"check(parse({job!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
