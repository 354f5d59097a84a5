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
        (['policy={name="over_selecting", clients_per_round=2}'], 3 * 2 * 2 * MODEL),
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
