"""A checked job becomes the federation that it describes, and sends the bytes that its plan says."""

from __future__ import annotations

import pytest

from atoll.errors import ConfigError
from atoll.job.build import build, make
from atoll.job.check import check
from atoll.job.plan import plan
from atoll.job.schema import Named
from atoll.job.text import parse

JOB = """atoll = 1
rounds = 1
seed = 3
[data]
name = "digits"
clients = 4
partition = "shards"
[task]
name = "classification"
[task.model]
name = "mlp"
inputs = 64
hidden = [8]
[local]
name = "sgd"
[algorithm]
name = "fedavg"
"""


@pytest.mark.parametrize(
    ("sets", "down", "up"),
    [
        ([], 1, 1),
        (["algorithm.name=scaffold"], 2, 2),
        (['transforms=[{name="cast"}]'], 1, 0.5),
        (['transforms=[{name="clip", norm=1.0}]'], 1, 1),
        (["algorithm.name=fedprox"], 1, 1),
    ],
)
def test_a_run_sends_what_the_plan_says(sets: list[str], down: float, up: float) -> None:
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    job = check(parse(JOB, overrides=sets))
    figures = plan(job)
    assert (figures.down_bytes, figures.up_bytes) == (parameters * 4 * down, parameters * 4 * up)
    record = build(job).run(job.rounds).record()
    sent = {(p.client, p.name): p.value for p in record.series if p.work == "train" and p.client}
    clients = {client for client, _ in sent}
    tensors = {way: [sent[c, f"bytes_{way}"] - sent[c, f"header_{way}"] for c in clients] for way in ("down", "up")}
    assert {way: set(each) for way, each in tensors.items()} == {"down": {figures.down_bytes}, "up": {figures.up_bytes}}
    assert sum(map(sum, tensors.values())) == figures.round_bytes


def test_everything_is_wired() -> None:
    sets = [
        'algorithm={name="fedavg", server_opt={name="momentum", beta=0.5}, weights="uniform"}',
        'transforms=[{name="clip", norm=1.0}, {name="cast"}]',
        'policy={name="over_selecting", clients_per_round=2}',
        'engine={name="processes", workers=1}',
        "evaluation={every=0, per_client=true, batch_size=7, examples=11}",
        "personalise=sgd",
    ]
    federation = build(check(parse(JOB, overrides=sets)))
    assert federation.seed == 3
    assert len(federation.data.clients) == 4
    assert [link.name for link in federation.transforms] == ["clip", "cast"]
    assert (federation.policy.in_flight, federation.policy.close_after) == (3, 2)
    assert (federation.engine, federation.engine_options) == ("processes", {"workers": 1})
    assert (federation.evaluate_every, federation.evaluate_clients, federation.evaluate_batch_size) == (1, True, 7)
    assert federation.data.test is not None
    assert len(federation.data.test) == 11
    assert federation.finetune is not None


def test_the_model_is_drawn_from_the_jobs_seed() -> None:
    first, same, other = (build(check(parse(JOB, overrides=[f"seed={seed}"]))).task.module.state_dict() for seed in (1, 1, 2))
    assert all(first[name].equal(same[name]) for name in first)
    assert not first["output.weight"].equal(other["output.weight"])


def test_a_factorys_own_refusal_names_the_section() -> None:
    with pytest.raises(ConfigError, match=r"^\[task.model\] kernel 4 is even"):
        make("task", Named(name="classification", model={"name": "cnn", "kernel": 4}))


def test_a_model_that_does_not_fit_the_data_is_said_before_training() -> None:
    with pytest.raises(ConfigError, match=r"can't read digits: .*one example is x float32 \(1, 1, 8, 8\), y int64 \(1,\) up to"):
        build(check(parse(JOB, overrides=['task={name="forecast", model={name="lstm", horizon=10}}'])))


def test_the_parts_must_go_together() -> None:
    with pytest.raises(ConfigError, match="momentum"):
        build(check(parse(JOB, overrides=["algorithm.name=scaffold", "local.momentum=0.9"])))
