"""A job's broadcast: what does not decode by itself is refused with its line, and the plan is near what a run sends."""

from __future__ import annotations

import pytest

from atoll.errors import JobError
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.plan import plan, rows
from atoll.job.text import parse
from atoll.report.cost import compression
from atoll.report.facts import ratios, read
from tests.job.digits import JOB


@pytest.mark.parametrize(
    ("sets", "tolerance"),
    [
        (["broadcast=cast", "task.model.hidden=[64]"], 0.01),
        (
            ["broadcast.name=int8", "rounds=60", "task.model.hidden=[64]", "policy={name='synchronous', clients_per_round=2}"],
            0.08,
        ),
        (
            [
                "broadcast={name='eden', bits=2}",
                "rounds=60",
                "task.model.hidden=[64]",
                "policy={name='synchronous', clients_per_round=1}",
            ],
            0.08,
        ),
        (["broadcast=xor", "rounds=12", "task.model.hidden=[64]"], 0.15),  # its bits are those of another run
        (["broadcast=int8", "algorithm.name=scaffold"], 0.05),
        (["broadcast=int8", "algorithm={name='federated_dropout'}"], 0.01),  # each has a model of its own: sent as it is
    ],
)
def test_the_plan_is_near_what_a_run_sends(sets: list[str], tolerance: float) -> None:
    job = check(parse(JOB, overrides=sets))
    record = build(job).run(job.rounds).record()
    told = {name: sum(p.value for p in record.series if p.client and p.name == name) for name in ("bytes_down", "header_down")}
    figures = plan(job)
    assert figures.down_bytes is not None
    assert figures.asked is not None
    planned = figures.down_bytes * figures.asked * job.rounds
    assert planned == pytest.approx(told["bytes_down"] - told["header_down"], rel=tolerance)


def test_the_row_says_what_goes_to_each_client() -> None:
    assert "by int8 the steps that it lacks" in dict(rows(check(parse(JOB, overrides=["broadcast=int8"]))))["to each client"]
    assert "steps" not in dict(rows(check(parse(JOB))))["to each client"]


def test_a_run_tells_its_ratios_both_ways() -> None:
    job = check(parse(JOB, overrides=["broadcast=int8", "transforms=[{name='int8'}]", "rounds=8", "task.model.hidden=[64]"]))
    facts = read(build(job).run(job.rounds).record())
    down, up, both = ratios(facts)
    assert (down.way, up.way, both.way) == ("down", "up", "both ways")
    assert 2.5 < down.times < 8 / (1 + 7 / 4) + 0.01
    assert 3.5 < up.times < 4
    assert both.sent == down.sent + up.sent
    assert both.plain == down.plain + up.plain
    assert down.plain == pytest.approx(up.plain, rel=0.05)
    assert not {"saved_down", "saved_up"} & set(facts.metrics)
    assert [name for name, _ in compression(facts)] == ["compression down", "compression up", "compression both ways"]
    assert compression(facts)[1][1].startswith(f"{up.times:.3g} x, ")
    assert compression(read(build(check(parse(JOB))).run(2).record())) == []


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("{name='clip', norm=1.0}", "[broadcast] 'clip' is no codec of a model, as it bounds a norm"),
        ("{name='feedback', around=['int8']}", "[broadcast] 'feedback' is no codec of a model, as it keeps a residual"),
        ("powersgd", "[broadcast] 'powersgd' is no codec of a model"),
        ("int7", "[broadcast] no transform is called 'int7'; did you mean 'int8'?"),
        ("{name='int8', blocks=3}", "[broadcast] int8 has no parameter 'blocks'; did you mean 'block'?"),
        ("3", "broadcast = 3: must be a table, [broadcast]"),
    ],
)
def test_what_is_no_codec_is_refused(given: str, why: str) -> None:
    with pytest.raises(JobError) as error:
        check(parse(JOB, overrides=[f"broadcast={given}"]))
    assert why in str(error.value)


def test_xor_is_no_codec_of_an_update_and_scalars_have_no_model() -> None:
    with pytest.raises(JobError, match="use it for the broadcast"):
        check(parse(JOB, overrides=["transforms=[{name='xor'}]"]))
    with pytest.raises(JobError, match="a few scalars"):
        check(
            parse(
                JOB.replace('[local]\nname = "sgd"\nbatch_size = 64\n', ""),
                overrides=["algorithm.name=fedkseed", "broadcast=int8"],
            )
        )
