"""Sites behind their policies on a real line: what the job did not declare stays, the round goes on, and the log says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atoll.result import Recorder
from atoll.store.keys import Keys
from atoll.store.memories import FileMemories
from atoll.store.sealed import is_sealed, lay
from atoll.types import Answer, ClientId, Failure, Update
from tests.deploy.real import JOB, Run, insecure, logged, same, simulated, told

OPEN = 'approval = "automatic"'
KEYS = Keys(bytes(range(32)))


def changed(**more: object) -> Callable[[Answer], Answer]:
    return lambda answer: answer if isinstance(answer, Failure) else answer._replace(**more)  # type: ignore[arg-type]


def with_rows(answer: Answer) -> Answer:
    assert isinstance(answer, Update)
    return answer._replace(tree={**answer.tree, "rows": torch.ones(3)})


def with_a_name(answer: Answer) -> Answer:
    assert isinstance(answer, Update)
    return answer._replace(metrics={**answer.metrics, "Jane Doe": 44.0})


@pytest.mark.parametrize(
    ("tampered", "says"),
    [(with_rows, "holds 'rows'"), (with_a_name, "has the metric 'Jane Doe'"), (changed(weight=3.5), "weighs 3.5")],
)
def test_what_was_not_declared_stays_and_the_round_goes_on(
    tmp_path: Path, tampered: Callable[[Answer], Answer], says: str
) -> None:
    run = Run(tmp_path)
    with insecure(tmp_path, "north", "south") as (hub, links):
        run.join("north", links["north"], OPEN, tampered=tampered)
        run.join("south", links["south"], OPEN)
        recorder = Recorder()
        run.carried_out(hub, sinks=[recorder])
    lost = [each for each in recorder.incidents if each.kind == "failure"]
    assert {(each.client, each.text) for each in lost} == {
        (client, "error: refused by the site's policy: declared") for client in ("client-0", "client-1")
    }
    refused = logged(tmp_path / "north", "refused")
    assert len(refused) == len(lost) == 4
    assert all(says in record["refusals"][0] for record in refused)
    assert {record["kind"] for record in logged(tmp_path / "north", "left")} == {"failure"}
    assert {record["kind"] for record in logged(tmp_path / "south", "left")} == {"update"}


def test_behind_policies_and_sealed_the_bits_are_those_of_a_simulation(tmp_path: Path) -> None:
    """SCAFFOLD, whose clients remember; with a codec, so that what leaves is decoded at the gate."""
    text = JOB.replace("[sites]", 'transforms = ["int8"]\n[sites]')
    run = Run(tmp_path, text)
    with insecure(tmp_path, "north", "south") as (hub, links):
        for site in links:
            run.join(site, links[site], OPEN, keys=KEYS)
        outcome = run.carried_out(hub)
    assert same(outcome.result.params, simulated(text))
    for site, clients in (("north", 2), ("south", 1)):
        kept = [file for file in (tmp_path / site / "memory").rglob("*") if file.is_file()]
        assert len(kept) == clients
        assert all(is_sealed(file.read_bytes()[:32]) for file in kept)
        assert not logged(tmp_path / site, "refused")


TABLE = """
atoll = 1
name = "figures"
rounds = 1
data = {name = "table", path = "PATH", label = "ill", by = "hospital", features = ["age", "bmi"MORE]}
task = {name = "classification", model = {name = "linear", inputs = WIDTH, outputs = 2}}
local = {name = "sgd", lr = 0.1}
algorithm = "fedavg"
evaluation = {every = 0}
"""
COLUMNS = f'{OPEN}\n[data]\ncolumns = ["age", "bmi", "ill", "hospital"]'


def table(folder: Path) -> Path:
    """Patients of two hospitals."""
    rows = [f"{'north' if i % 2 else 'south'},{30 + i},{20 + i / 2},{i % 3},{i % 2}" for i in range(40)]
    (folder / "patients.csv").write_text("\n".join(["hospital,age,bmi,diagnosis_code,ill", *rows]))
    return folder / "patients.csv"


@pytest.mark.parametrize(("more", "width"), [("", "2"), (', "diagnosis_code"', "3")], ids=["allowed", "one too many"])
def test_a_column_that_may_not_be_read_is_not(tmp_path: Path, more: str, width: str) -> None:
    text = TABLE.replace("PATH", str(table(tmp_path))).replace("MORE", more).replace("WIDTH", width)
    run, consents = Run(tmp_path, text), list[str]()
    with insecure(tmp_path, "north", "south") as (hub, links):
        run.join("north", links["north"], COLUMNS)
        run.join("south", links["south"])

        def look(rounds: int, _: object) -> None:
            consents.extend(each.reason for job in hub._floor.desks for each in hub.consents(job).values())

        run.carried_out(hub, patience_s=1.0 if more else 300.0, each_round=look)
    events = [record["event"] for record in logged(tmp_path / "north")]
    if not more:
        assert events == ["opened", "admitted", "came", "left"]
        return
    assert events == ["opened", "refused"]  # before a row was read, and no assignment came
    (record,) = logged(tmp_path / "north", "refused")
    assert record["text"].startswith("[data] columns: the column 'diagnosis_code' is not among age, bmi, ill, hospital")
    assert record["text"] in consents


def test_a_site_that_has_lost_its_key_says_so(tmp_path: Path) -> None:
    north, memory = ClientId("north"), {"c": torch.ones(1)}
    kept = FileMemories(tmp_path, lay=lay(KEYS, "job/memory"))
    kept.propose(north, 0, "train", memory)
    kept.commit(north, 0, "train")
    assert "no key is given" in told(lambda: FileMemories(tmp_path).get(north))
    assert "is not what was sealed under this name" in told(lambda: FileMemories(tmp_path, lay=lay(KEYS, "b/memory")).get(north))


@pytest.mark.parametrize(
    ("policy", "job", "says"),
    [
        (
            "[privacy]\nepsilon_in_all = 2.0",
            "privacy = {epsilon = 3.0, delta = 1e-6}",
            "[privacy] epsilon_in_all: the job declares",
        ),
        ("[privacy]\nrequired = true", "", "[privacy] required: the job declares no privacy budget"),
        ('[data]\nnames = ["table"]', "", "[data] names: the job's data set is 'digits'; this site allows table"),
    ],
    ids=["over the budget", "no budget", "other data"],
)
def test_what_the_policy_does_not_allow_is_refused_before_anything_is_computed(
    tmp_path: Path, policy: str, job: str, says: str
) -> None:
    run, consents = Run(tmp_path, JOB.replace("[sites]", f"{job}\n[sites]")), set[str]()
    with insecure(tmp_path, "north", "south") as (hub, links):
        run.join("north", links["north"], f"{OPEN}\n{policy}")
        run.join("south", links["south"])

        def look(rounds: int, _: object) -> None:
            consents.update(each.reason for id in hub._floor.desks for each in hub.consents(id).values())

        run.carried_out(hub, patience_s=1.0, each_round=look)
    (record,) = logged(tmp_path / "north", "refused")
    assert record["text"].startswith(says)
    assert record["text"] in consents
    assert not logged(tmp_path / "north", "came", "left")
