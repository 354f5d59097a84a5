"""What a job's algorithm declares is what its clients send, for every algorithm and codec; and whatever else is made stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from atoll import catalog
from atoll.deploy.rules.declared import Promise, promises
from atoll.deploy.rules.judge import Usage
from atoll.deploy.rules.permit import permit
from atoll.deploy.rules.policy import read_policy
from atoll.engines.serial import serial
from atoll.federation import Federation
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.text import parse
from atoll.types import HELD_OUT, Answer, Assignment, Failure, Update

JOB = """
atoll = 1
rounds = 2
data = {name = "digits", clients = 2}
task = {name = "classification", model = {name = "mlp", inputs = 64, hidden = [8], outputs = 10}}
"""
POLICY = read_policy('site_policy = 1\napproval = "automatic"')
SGD = "local={name = 'sgd', lr = 0.1, steps = 2, batch_size = 8}"
KEPT = "local={name = 'sgd', lr = 0.1, steps = 2, batch_size = 8, keep = true}"
SMALL = {"fedkseed": ("algorithm.steps=2", "algorithm.candidates=16"), "data_parallel": ("algorithm.batch_size=500",)}
LOCALS = {  # the local work of algorithms that do not take any
    **dict.fromkeys(("data_parallel", "fedkseed", "fedsgd"), None),
    **dict.fromkeys(("diloco", "sparseloco", "streaming_diloco"), KEPT),
}
TRANSFORMS: dict[str, dict[str, Any]] = {  # what a transform needs beside its defaults
    "clip": {"norm": 1.0},
    "feedback": {"around": [{"name": "top_k", "fraction": 0.1}]},
    "norm_threshold": {"most": 1e6},
}


class Judged:
    """A serial engine whose every answer is judged as at the gate of a site."""

    def __init__(self, inner: Any, found: Mapping[str, Promise]) -> None:
        self._inner, self._found, self._asked = inner, found, dict[tuple[int, str, str], Assignment]()
        self.refusals: list[str] = []
        self.judged: list[tuple[Assignment, Update]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def submit(self, assignments: Any) -> None:
        asked = list(assignments)
        self._asked.update({(a.round, a.client, a.work): a for a in asked})
        self._inner.submit(asked)

    def results(self, timeout_s: float) -> Iterator[Answer]:
        for answer in self._inner.results(timeout_s):
            assert not isinstance(answer, Failure), answer.reason
            if not answer.client.startswith(HELD_OUT):
                assignment = self._asked[answer.round, answer.client, answer.work]
                declared = self._found[answer.work].of(assignment)
                self.refusals += map(str, permit(answer, POLICY, Usage(), declared))
                self.judged.append((assignment, answer))
            yield answer


def run(federation: Federation, rounds: int = 2) -> Judged:
    """A federation run by an engine that judges."""
    found, made = promises(federation, rounds), list[Judged]()

    def engine(*arguments: Any, **_: Any) -> Any:
        made.append(Judged(serial(*arguments), found))
        return made[0]

    dataclasses.replace(federation, engine=engine, engine_options={}).run(rounds)
    return made[0]


def built(algorithm: str, *overrides: str) -> Federation:
    local = LOCALS.get(algorithm, SGD)
    document = parse(JOB, overrides=[f"algorithm.name={algorithm}", *([local] if local else []), *overrides])
    return build(check(document))


@pytest.mark.parametrize("name", [entry.name for entry in catalog.entries("algorithm")])
def test_every_algorithm_sends_what_it_declares(name: str) -> None:
    judged = run(built(name, *SMALL.get(name, ())))
    assert judged.refusals == []
    assert len(judged.judged) >= 4


@pytest.mark.parametrize("name", [entry.name for entry in catalog.entries("transform") if entry.name != "xor"])  # of models alone
def test_every_transform_sends_what_it_declares(name: str) -> None:
    more = "".join(f", {key} = {_toml(value)}" for key, value in TRANSFORMS.get(name, {}).items())
    judged = run(built("fedavg", f"transforms=[{{name = '{name}'{more}}}]"))
    assert judged.refusals == []
    assert promises(built("fedavg"), 3)["train"].like is not None


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return f"'{value}'" if isinstance(value, str) else str(value)


def test_evaluation_and_fine_tuning_send_no_tensor() -> None:
    judged = run(built("scaffold", "evaluation={per_client = true}", "personalise={name = 'sgd', lr = 0.01}"))
    assert judged.refusals == []
    assert {update.work for _, update in judged.judged} == {"train", "evaluate_clients", "global", "finetune", "personal"}
    sent = next(pair for pair in judged.judged if pair[1].work == "finetune")
    told = judge(judged, sent[0], sent[1]._replace(tree=dict(sent[0].tree)))
    assert len(told) == 3
    assert "which the job's algorithm does not declare" in told[0]


def judge(judged: Judged, assignment: Assignment, update: Update) -> list[str]:
    return [str(each) for each in permit(update, POLICY, Usage(), judged._found[update.work].of(assignment))]


@pytest.mark.parametrize("transforms", ["[]", "['top_k', 'int8']", "[{name = 'cast', dtype = 'bf16'}]", "['zstd']"])
def test_anything_else_stays(transforms: str) -> None:
    judged = run(built("fedavg", f"transforms={transforms}"), 1)
    assignment, update = judged.judged[0]
    first, tensor = next((name, x) for name, x in update.tree.items() if x.dim())
    odd: list[dict[str, Any]] = [
        {"tree": {**update.tree, "rows": torch.zeros(1)}},
        {"tree": {**update.tree, "w~evil/1=rows": torch.zeros(1)}},
        {"tree": {**update.tree, "": torch.zeros(1)}},
        {"tree": {**update.tree, first: torch.cat([tensor, tensor])}},
        {"tree": {**update.tree, first: tensor.double()}},
        {"tree": {name: x for name, x in update.tree.items() if name != first}},
        {"metrics": {**update.metrics, "age of Jane Doe": 44.0}},
        {"weight": update.weight + 0.25},
        {"weight": float("inf")},
        {"weight": -1.0},
    ]
    assert judge(judged, assignment, update) == []
    for each in odd:
        assert judge(judged, assignment, update._replace(**each)), each


def test_where_the_model_comes_encoded_the_update_is_judged_all_the_same() -> None:
    judged = run(built("fedavg", "broadcast=int8", "transforms=['int8']"))
    assert judged.refusals == []
    assert judged._found["train"].like is not None


def test_where_only_the_names_are_known_codecs_are_the_jobs_own() -> None:
    judged = run(built("fedsgd"), 1)
    assignment, update = judged.judged[0]
    assert judge(judged, assignment, update) == []
    promise = judged._found["train"]._replace(like=None, as_sent=False)
    spelled = {f"{next(iter(assignment.tree))}~int8/1=q": torch.zeros(4, dtype=torch.int8)}
    told = permit(update._replace(tree=spelled), POLICY, Usage(), promise.of(assignment))
    assert [each.rule for each in told] == ["declared"]
