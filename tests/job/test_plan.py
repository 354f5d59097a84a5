"""The bytes that `atoll check` tells are those of the tensors that a run records, whatever is asked of the clients."""

from __future__ import annotations

import pytest

from atoll.job.build import build
from atoll.job.check import check
from atoll.job.plan import plan
from atoll.job.text import parse
from tests.job.digits import JOB

PARAMETERS = 64 * 4 + 4 + 4 * 10 + 10
MODEL = PARAMETERS * 4
CAST = 'transforms=[{name="cast"}]'


@pytest.mark.parametrize(
    ("sets", "total"),
    [
        ([], 3 * 4 * 2 * MODEL),
        (["evaluation.per_client=true"], (3 * 4 * 2 + 3 * 4) * MODEL),
        (["evaluation={per_client=true, every=2}"], (3 * 4 * 2 + 2 * 4) * MODEL),
        (["evaluation={per_client=true, every=0}"], (3 * 4 * 2 + 4) * MODEL),
        (["personalise=sgd"], (3 * 4 * 2 + 3 * 4) * MODEL),
        (["personalise=sgd", "evaluation.per_client=true", CAST], 3 * 4 * 1.5 * MODEL + (3 * 4 + 3 * 4) * MODEL),
        (["algorithm.name=scaffold", "policy.name=synchronous", "policy.clients_per_round=2"], 3 * 2 * 4 * MODEL),
        (["algorithm.name=mimelite"], 3 * 4 * 5 * MODEL),
        (["algorithm.name=mimelite", CAST], 3 * 4 * (3 + 0.5 + 1) * MODEL),  # only the update is cast, not the gradient
        (["algorithm.name=qfedavg"], 3 * 4 * (3 * MODEL + 4)),  # to measure, to train, the update and its h
        (["algorithm.name=qfedavg", CAST], 3 * 4 * (2.5 * MODEL + 2)),
        (["algorithm.name=fednova"], 3 * 4 * (2 * MODEL + 4)),
        (["algorithm.name=feddyn"], 3 * 4 * 2 * MODEL),
        (['policy={name="buffered", clients_in_flight=3, buffer=2}', "algorithm.name=fedbuff"], 3 * 2 * 2 * MODEL),
        (['policy={name="buffered", clients_in_flight=3, buffer=1}', "algorithm.name=fedasync"], 3 * 1 * 2 * MODEL),
        (['policy={name="over_selecting", clients_per_round=2}'], 3 * (3 + 2) * MODEL),  # three are asked, two are heard
        (['policy={name="deadline", clients_per_round=2, timeout_s=60}'], 3 * 2 * 2 * MODEL),
    ],
)
def test_the_plan_is_what_a_run_records(sets: list[str], total: float) -> None:
    job = check(parse(JOB, overrides=sets))
    assert plan(job).total_bytes == total
    record = build(job).run(job.rounds).record()
    sent = sum(p.value for p in record.series if p.client and p.name in ("bytes_down", "bytes_up"))
    header = sum(p.value for p in record.series if p.client and p.name in ("header_down", "header_up"))
    assert sent - header == total


def _recorded(sets: list[str]) -> tuple[float, float, bool]:
    """Bytes of all tensors as planned and as a run sent them, and whether the plan says "at most"."""
    job = check(parse(JOB, overrides=sets))
    planned, record = plan(job), build(job).run(job.rounds).record()
    sent = sum(p.value for p in record.series if p.client and p.name in ("bytes_down", "bytes_up"))
    header = sum(p.value for p in record.series if p.client and p.name in ("header_down", "header_up"))
    assert planned.total_bytes is not None
    return planned.total_bytes, sent - header, planned.at_most


@pytest.mark.parametrize(
    "sets",
    [
        ["algorithm={name='federated_dropout'}"],
        ["algorithm={name='federated_dropout', keep=0.25, draw='round'}", "task.model.hidden=[7, 5]"],
        ["algorithm={name='feddst', density=0.5, shrink=false}"],
        ["algorithm={name='feddst', density=0.4, every=1, shrink=false}", "task.model.hidden=[9]"],
        ["algorithm={name='feddst', density=0.4, every=2, exchange=0.3, spread='uniform', shrink=false}"],
        ["algorithm={name='feddst', density=0.4, every=1, exchange=0.0, shrink=false}"],
        ["algorithm={name='feddst', density=1.0, every=1, shrink=false}"],
    ],
)
def test_smaller_models_are_what_a_run_records(sets: list[str]) -> None:
    planned, sent, at_most = _recorded(sets)
    assert planned == pytest.approx(sent)
    assert not at_most


def test_masks_that_not_everybody_has_heard_of_are_an_upper_bound() -> None:
    planned, sent, at_most = _recorded(
        ["algorithm={name='feddst', density=0.4}", "policy={name='synchronous', clients_per_round=2}"]
    )
    assert 0.85 * planned < sent <= planned
    assert at_most
