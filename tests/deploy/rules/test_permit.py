"""What may leave: only the declared message, by name and shape, in no more bytes, metrics and words than the policy says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atoll.algorithms.fedavg import fedavg
from atoll.deploy.rules.judge import Usage
from atoll.deploy.rules.permit import Declared, declared_by, declared_by_assignment, permit, permit_work, told_by
from atoll.deploy.rules.policy import SitePolicy, read_policy
from atoll.errors import TreeError
from atoll.local.sgd import sgd
from atoll.models.linear import linear
from atoll.tasks.regression import regression
from atoll.transforms.compress.top_k import top_k
from atoll.transforms.pipe import pipe
from atoll.types import Assignment, ClientId, Failure, Request, Tree, Update
from atoll.wire import frame

NORTH = ClientId("north")
LIKE = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}


def policy(text: str = "") -> SitePolicy:
    return read_policy(f"site_policy = 1\n{text}")


def update(tree: Tree | None = None, **other: Any) -> Update:
    given = {"round": 3, "client": NORTH, "work": "train", "weight": 8.0, "metrics": {"loss": 0.5}, **other}
    return Update(tree=LIKE if tree is None else tree, **given)


DECLARED = Declared("train", LIKE)


def rules(answer: Update | Failure, text: str = "", declared: Declared = DECLARED, usage: Usage | None = None) -> list[str]:
    return [each.rule for each in permit(answer, policy(text), usage or Usage(), declared)]


def test_the_declared_message_may_leave() -> None:
    assert rules(update()) == []
    assert rules(update({}, work="evaluate"), declared=Declared("evaluate", {})) == []


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({**LIKE, "rows": torch.zeros(1)}, "holds 'rows', which the job's algorithm does not declare"),
        ({"w": LIKE["w"]}, "lacks 'b', which the job's algorithm declares"),
        ({**LIKE, "b": torch.zeros(4)}, "has 'b' as float32 [4], declared as float32 [3]"),
        ({**LIKE, "b": torch.zeros(3, dtype=torch.float64)}, "has 'b' as float64 [3], declared as float32 [3]"),
        ({**LIKE, "b": torch.zeros(3, 1)}, "has 'b' as float32 [3, 1], declared as float32 [3]"),
    ],
)
def test_any_other_tensor_stays(tree: Tree, told: str) -> None:
    (refusal,) = permit(update(tree), policy(), Usage(), Declared("train", LIKE))
    assert refusal.rule == "declared"
    assert told in refusal.text


def test_work_and_metrics_are_those_allowed() -> None:
    assert rules(update(), '[leaves]\nwork = ["evaluate"]') == ["[leaves] work"]
    assert permit_work(policy('[leaves]\nwork = ["train"]'), "train") == []
    assert rules(update(), '[leaves]\nmetrics = ["loss"]') == []
    assert rules(update(metrics={"loss": 0.1, "age of Jane Doe": 44.0}), '[leaves]\nmetrics = ["loss"]') == ["[leaves] metrics"]
    assert rules(update(), declared=Declared("train", LIKE, metrics=frozenset())) == ["declared"]
    assert rules(update(), declared=Declared("evaluate", LIKE)) == ["declared"]


def test_the_number_of_examples_can_be_kept() -> None:
    assert rules(update(), "[leaves]\nexample_counts = false") == ["[leaves] example_counts"]
    assert rules(update(weight=1.0), "[leaves]\nexample_counts = false") == []
    assert rules(update(weight=float("nan"))) == ["declared"]


def test_bytes_are_counted_with_those_that_left_before() -> None:
    big = {"w": torch.zeros(1 << 18)}
    size, mib = frame.size(update(big)).total, 1 << 20
    assert size > mib
    declared = Declared("train", big)
    assert rules(update(big), "[leaves]\nround_mib = 1.0", declared) == ["[leaves] round_mib"]
    two = "[leaves]\nround_mib = 2.0\njob_mib = 3.0"
    assert rules(update(big), two, declared, Usage(round_bytes=2 * mib - size, job_bytes=3 * mib - size)) == []
    over = Usage(round_bytes=2 * mib - size + 1, job_bytes=3 * mib - size + 1)
    assert rules(update(big), two, declared, over) == ["[leaves] round_mib", "[leaves] job_mib"]


def test_the_words_of_an_error_stay() -> None:
    failure = Failure(0, NORTH, "train", "error", "could not read 'Jane Doe' as a number")
    assert rules(failure) == ["[leaves] reasons"]
    assert rules(told_by(failure, policy())) == []
    assert rules(failure, "[leaves]\nreasons = true") == []
    assert told_by(failure, policy("[leaves]\nreasons = true")) is failure


def encoded() -> tuple[Request, Assignment, Update]:
    """A request of FedAvg behind top-k, an assignment of it, and what its client sends."""
    task = regression(linear(3, 1))
    algorithm = pipe(fedavg(sgd(task, lr=0.1)), top_k(0.5))
    request = next(algorithm.round(algorithm.init(LIKE), [NORTH]))
    assignment = Assignment(0, NORTH, "train", request.tree_for(NORTH), 0)
    link = top_k(0.5)
    plain = update({name: torch.randn(x.shape) for name, x in LIKE.items()}, round=0)
    assert isinstance(link.name, str)
    return request, assignment, link.encode(assignment, {}, {}, plain)[0]


def test_what_codecs_made_is_judged_as_the_server_would_read_it() -> None:
    request, assignment, sent = encoded()
    for declared in (declared_by(request), declared_by_assignment(assignment)):
        assert rules(sent, declared=declared) == []
        hidden = sent._replace(tree={**sent.tree, "rows": torch.zeros(5)})
        assert set(rules(hidden, declared=declared)) == {"declared"}


def test_what_no_codec_made_stays() -> None:
    def decode(sent: Update) -> Update:
        raise TreeError("w~topk/1=values has 3 entries where 4 were to be")

    (refusal,) = permit(update(), policy(), Usage(), Declared("train", LIKE, decode))
    assert "is not what the job's codecs make (w~topk/1=values has 3 entries" in refusal.text


def test_an_assignment_alone_allows_its_own_tensors_and_not_much_more() -> None:
    declared = declared_by_assignment(Assignment(0, NORTH, "train", {**LIKE, "~clip/norm": torch.ones(())}, 0))
    assert rules(update(), declared=declared) == []
    assert rules(update({}), declared=declared) == []
    assert rules(update({"~clip/norm": torch.ones(())}), declared=declared) == ["declared"]
    assert rules(update({**LIKE, "w": torch.zeros(6)}), declared=declared) == ["declared"]
    assert rules(update({**LIKE, "w~x/1=values": torch.zeros(2000)}), declared=declared) == ["declared"]
    assert rules(update(), declared=Declared("train")) == ["declared"]
