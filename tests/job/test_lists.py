"""A section may name several factories in a list: codecs inside error feedback, each checked where it stands."""

from __future__ import annotations

import pytest

from atoll import catalog
from atoll.catalog import Parameter
from atoll.errors import ConfigError, JobError
from atoll.job.build import build, make
from atoll.job.check import check
from atoll.job.plan import plan, rows
from atoll.job.schema import Job, Named
from atoll.job.text import parse
from atoll.job.together import links_of
from atoll.job.values import kind_of_each, problem
from tests.job.test_build import JOB

FEEDBACK = """[[transforms]]
name = "feedback"
around = [{ name = "top_k", fraction = 0.1 }, "int8"]
"""


def job_of(*sets: str, transforms: str = FEEDBACK) -> Job:
    return check(parse(JOB + transforms, overrides=sets))


def problems(transforms: str, *sets: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        job_of(*sets, transforms=transforms)
    return [line.partition(": ")[2] for line in caught.value.problems]


def test_the_links_are_made_and_told_how_many_take_part() -> None:
    (all_of_four,) = build(job_of()).transforms
    assert ([link.name for link in all_of_four.links], all_of_four.properties.feedback) == (["top_k", "int8"], True)
    for policy, on in (
        ('{name="synchronous", clients_per_round=2}', True),
        ('{name="synchronous", clients_per_round=1}', False),
        ('{name="over_selecting", clients_per_round=1, factor=3.0}', False),  # three are asked, and one is heard
        ('{name="buffered", clients_in_flight=4, buffer=1}', False),
    ):
        (one,) = build(job_of(f"policy={policy}")).transforms
        assert one.properties.feedback == on, policy
    (forced,) = build(job_of("transforms.0.when=always", "policy={name='synchronous', clients_per_round=1}")).transforms
    assert forced.properties.feedback


def test_headers_and_overrides_reach_inside() -> None:
    inside = '[[transforms.around]]\nname = "clip"\nnorm = 1.0\n[[transforms.around]]\nname = "top_k"\n'
    text = '[[transforms]]\nname = "feedback"\n' + inside
    job = job_of("transforms.0.around.1.fraction=0.5", transforms=text)
    assert [(spot, each.name) for spot, each in links_of(job)] == [
        (("transforms", 0), "feedback"),
        (("transforms", 0, "around", 0), "clip"),
        (("transforms", 0, "around", 1), "top_k"),
    ]
    assert build(job).run(1).metrics["heard"] == 4
    with pytest.raises(JobError, match=r"job.toml:24: \[\[transforms\]\] number 1, around number 2: no transform"):
        job_of(transforms=text.replace("top_k", "topk"))


@pytest.mark.parametrize(
    ("around", "says"),
    [
        ('["int9"]', "[[transforms]] number 1, around number 1: no transform is called 'int9'; did you mean 'int8'?"),
        ('["int8", { fraction = 0.1 }]', "[[transforms]] number 1, around number 2: name is missing"),
        ('["int8", 3]', "[[transforms]] number 1, around number 2: name is missing"),
        ('[{ name = "top_k", fraction = 2.0 }]', "around number 1: fraction = 2.0: must be above 0 and at most 1"),
        ('[{ name = "top_k", share = 0.1 }]', "around number 1: top_k has no parameter 'share'; it has fraction, threshold"),
        ('["clip"]', "around number 1: norm is missing: clip has no default for it"),
        ('"top_k"', 'number 1: around = "top_k": must be a list, each a name from `atoll catalog transform`'),
        ('["top_k", { name = "clip", norm = 1.0 }]', "'clip' bounds the norm of what 'top_k' has encoded; put 'clip' first"),
        ('["top_k", "top_k"]', "number 1: 'top_k' is attached twice; keep one"),
        ('["random_k"]', "use 'top_k' inside it"),
        ('[{ name = "feedback", around = ["sgn"] }]', "number 1, around number 1.around number 1: no transform is called 'sgn'"),
    ],
)
def test_a_problem_is_said_where_it_is(around: str, says: str) -> None:
    (found,) = problems(f'[[transforms]]\nname = "feedback"\naround = {around}\n')
    assert says in found


def test_what_stands_beside_it_must_go_with_what_is_inside() -> None:
    assert "put 'clip' inside it" in problems('[[transforms]]\nname = "clip"\nnorm = 1.0\n' + FEEDBACK)[0]
    assert "'int8' is attached twice" in problems(FEEDBACK + '[[transforms]]\nname = "int8"\n')[0]
    (missing,) = problems('[[transforms]]\nname = "feedback"\n')
    assert missing.endswith("number 1: around is missing: a list, each a name from `atoll catalog transform`")
    inside = FEEDBACK.replace("[{", '[{ name = "clip", norm = 1.0 }, {')
    assert any("more than an update" in each for each in problems(inside, "algorithm.name=scaffold"))


def test_a_factorys_own_refusal_comes_through() -> None:
    with pytest.raises(ConfigError, match=r"^\[transforms\] int8 block = 1"):
        make("transform", Named(name="feedback", around=["top_k", {"name": "int8", "block": 1}]), participation=1.0)
    with pytest.raises(ConfigError, match=r"^\[transforms\] feedback when = \"auto\": .*participation"):
        make("transform", Named(name="feedback", around=["top_k"]))


def test_the_plan_counts_what_is_inside() -> None:
    """Of a value of the model .1 is kept: 8.1 bits for its position and 8.125 in place of its 32."""
    figures = plan(job_of())
    assert figures.up_bytes is not None
    assert figures.up_bytes / figures.down_bytes == pytest.approx(0.1 * (8.1 + 8.125) / 32)  # type: ignore[operator]
    assert ("update passes", "feedback (around top_k (fraction 0.1), int8)") in list(rows(job_of()))
    apart = plan(job_of(transforms='[[transforms]]\nname = "top_k"\nfraction = 0.1\n[[transforms]]\nname = "int8"\n'))
    assert apart.up_bytes == figures.up_bytes


def test_what_is_sent_is_at_most_what_the_plan_says() -> None:
    """The plan counts positions as if they were independent; here many lie at pixels that are always dark, or never."""
    job = job_of("task.model.hidden=[400]")
    record = build(job).run(1).record()
    sent = {p.name: p.value for p in record.series if p.work == "train" and p.client}
    tensors, planned = sent["bytes_up"] - sent["header_up"], plan(job).up_bytes
    assert planned is not None
    assert 0.5 * planned < tensors < 1.02 * planned


def test_the_catalog_has_what_wraps_a_list_and_not_what_wraps_one() -> None:
    names = {entry.name for entry in catalog.entries("transform")}
    assert {"feedback", "top_k", "chunk_top_k", "random_k", "few_bits"} <= names
    assert "chain" not in names
    assert "`around`" in catalog.markdown()


def test_lists_of_what_factories_make() -> None:
    assert kind_of_each("Sequence[Transform[Any]] | None") == "transform"
    assert kind_of_each("Sequence[float]") is None
    assert kind_of_each("Local[Any]") is None
    assert problem(Parameter("participation", "float"), 1.5) == "must be above 0 and at most 1"
