"""Clip and cast obey the laws and their bounds; what does not compose is refused; everyone has a corner of memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll import catalog, tree
from atoll.algorithms.fedavg import State, fedavg
from atoll.errors import ConfigError
from atoll.fold import Fold
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.policy import buffered
from atoll.store.memories import Kept
from atoll.testing.store import same_bits
from atoll.testing.transform import check_transform
from atoll.transforms.clip import clip
from atoll.transforms.compose import Link, clashes
from atoll.transforms.compress.cast import cast
from atoll.transforms.norm_threshold import norm_threshold
from atoll.transforms.pipe import pipe
from atoll.types import Assignment, ClientId, Properties, Reduced, Transform, Tree, Update
from tests.core.small import TWO, Log, holding, line, states, weights

NOWHERE = Assignment(0, ClientId("a"), "train", {}, 0)


def encoded(transform: Transform[Any], values: Tree) -> Update:
    return transform.encode(NOWHERE, {}, {}, Update(0, ClientId("a"), "train", values, 1.0, {}))[0]


def test_clip_obeys_the_laws() -> None:
    check_transform(clip(0.5))
    check_transform(clip(1e3))


def test_norm_threshold_obeys_the_laws() -> None:
    check_transform(norm_threshold(1e6))


@pytest.mark.parametrize(("times", "heard"), [(0.9, True), (1e6, False)])
def test_an_update_that_its_client_has_not_clipped_is_a_failure(times: float, heard: bool) -> None:
    algorithm = pipe(fedavg(sgd(line(), lr=0.1)), clip(1.0), norm_threshold(1.0 + 1e-5))
    flow = algorithm.round(algorithm.init({"weight": torch.zeros(1, 1)}), [ClientId("a")])
    request = next(flow)
    fold = Fold(request, buffered(1, 1), 0, in_order=True)
    like = request.like or {}
    size = math.sqrt(sum(x.numel() for x in like.values()))
    sent = {name: torch.full_like(x, times / size) for name, x in like.items()}
    judged = fold.judge(Update(0, ClientId("a"), "train", sent, 1.0, {}))
    assert isinstance(judged, Update) == heard
    assert heard or (judged.kind == "invalid" and "norm_threshold allows" in judged.reason)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_cast_obeys_the_laws(dtype: Any) -> None:
    # Half of the last place: 2^-9 relative for bf16, 2^-12 for fp16; small values of fp16 lose more
    error = {"bf16": 2**-8, "fp16": 2**-10}[dtype]
    check_transform(cast(dtype), tolerance=2**-6, error=error)


floats = st.floats(-(2.0**100), 2.0**100, width=32)
trees = st.dictionaries(st.sampled_from("abc"), st.lists(floats, max_size=5), min_size=1).map(
    lambda found: {name: torch.tensor(values, dtype=torch.float32) for name, values in found.items()}
)


def length(values: Tree) -> float:
    return math.sqrt(sum(float(x.double().square().sum()) for x in values.values()))


@settings(deadline=None, max_examples=80)
@given(values=trees, norm=st.floats(1e-3, 1e6), flat=st.booleans())
def test_clip_bounds_the_norm_and_keeps_the_direction(values: Tree, norm: float, flat: bool) -> None:
    given_ = tree.pack(values) if flat else values
    got, before = encoded(clip(norm), given_), length(values)
    after = length(got.tree)
    assert after <= norm * (1 + 1e-5)
    if before <= norm * (1 - 1e-5):
        assert same_bits(dict(got.tree), dict(given_))
        assert got.metrics["clipped"] == 0.0
    elif before > norm * (1 + 1e-5):
        assert after == pytest.approx(norm, rel=1e-4)
        assert got.metrics["clipped"] == 1.0
        for name, x in values.items():
            torch.testing.assert_close(got.tree[name].double(), x.double() * (norm / before), rtol=1e-4, atol=norm * 1e-6)
    assert got.metrics["norm"] == pytest.approx(before, rel=1e-4)


@settings(deadline=None, max_examples=80)
@given(values=trees)
def test_cast_is_within_half_a_place(values: Tree) -> None:
    for name, x in encoded(cast("bf16"), values).tree.items():
        assert x.dtype == torch.bfloat16
        assert bool(((x.float() - values[name]).abs() <= 2**-8 * values[name].abs() + 1e-38).all())


def test_cast_leaves_what_is_not_a_fraction() -> None:
    values: Tree = {
        "n": torch.tensor([1, 2**40]),
        "mask": torch.tensor([True]),
        "scalar": torch.tensor(0.1),
        "none": torch.ones(0),
    }
    got = encoded(cast("bf16"), values).tree
    assert same_bits({n: got[n] for n in ("n", "mask")}, {n: values[n] for n in ("n", "mask")})
    assert got["scalar"].shape == ()
    assert got["none"].shape == (0,)
    assert {x.dtype for x in (got["scalar"], got["none"])} == {torch.bfloat16}


def test_what_overflows_a_narrow_type_is_a_failure_with_a_name() -> None:
    task, log = line(), Log()
    clients = holding(a=[1.0], b=[1e6])  # b's update is beyond 65,504
    states(pipe(fedavg(sgd(task, lr=0.5)), cast("fp16")), clients, 1, task, log=log)
    assert [(e.client, e.text.partition(":")[0]) for e in log.of("failure")] == [("b", "not_finite")]


def test_clip_in_a_round() -> None:
    task = line()
    # One step at lr .5: D_a = .5 stays, D_b = 2.5 becomes 1: .25 .5 + .75 1 = .875
    local = sgd(task, lr=0.5, batch_size=None)
    log = Log()
    assert weights(pipe(fedavg(local), clip(1.0)), holding(**TWO), 1, task, log=log) == pytest.approx([0.875])
    assert log.of("reduced")[0].metrics["clipped"] == 0.75  # by examples: b has 3 of 4


def test_a_narrow_update_costs_half() -> None:
    task, log = line(), Log()
    states(pipe(fedavg(sgd(task)), cast("bf16")), holding(**TWO), 1, task, log=log)
    each = [e.metrics for e in log.of("update")]
    assert {(m["bytes_down"] - m["header_down"], m["bytes_up"] - m["header_up"]) for m in each} == {(4, 2)}


def test_what_does_not_compose_is_refused() -> None:
    algorithm = fedavg(sgd(line()))
    with pytest.raises(ConfigError, match="attached twice"):
        pipe(algorithm, cast("bf16"), clip(1.0), cast("fp16"))
    with pytest.raises(ConfigError, match="put 'clip' first"):
        pipe(algorithm, cast("bf16"), clip(1.0))
    with pytest.raises(ConfigError, match="no work 'evaluate'"):
        pipe(algorithm, clip(1.0), work="evaluate")
    for wrong in (lambda: clip(0.0), lambda: clip(-1.0), lambda: clip(math.nan), lambda: cast("int8")):  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            wrong()


def counting(name: str) -> Transform[int]:
    """Remembers at the client how often it was there; tells the clients the round; adds what it counted at the server."""

    def encode(a: Assignment, told: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        assert sorted(told) == ["round"], "broadcasts of two transforms are mixed up"
        assert set(memory) <= {"count"}, "one transform sees another's memory"
        count = memory.get("count", torch.tensor(0.0)) + 1
        metrics = {**update.metrics, f"{name} round": float(told["round"]), f"{name} count": float(count)}
        return update._replace(metrics=metrics), {"count": count}

    def finish(state: int, reduced: Reduced) -> tuple[Tree, int]:
        return reduced.tree, state + 1

    return Transform(
        name, lambda w: 0, lambda s: {"round": torch.tensor(float(s))}, encode, None, finish, Properties(linear=True, memory=True)
    )


def test_a_transform_with_memory_obeys_the_laws() -> None:
    check_transform(counting("one"))


def test_each_transform_has_its_own_corner() -> None:
    task, log, memories = line(), Log(), Kept()
    algorithm = pipe(fedavg(sgd(task)), counting("one"), counting("two"))
    *_, last = states(algorithm, holding(**TWO), 3, task, log=log, memories=memories)
    assert sorted(memories.get(ClientId("a"))) == ["~one/count", "~two/count"]
    final = [e.metrics for e in log.of("update")][-1]
    assert [final[f"{n} {what}"] for n in ("one", "two") for what in ("round", "count")] == [2, 3, 2, 3]
    assert (last.algorithm[0][1], last.algorithm[1]) == (3, 3)


def test_other_work_passes_by() -> None:
    """A transform on "train" neither sees nor spoils what is asked beside it."""
    from atoll.algorithms.evaluation import with_evaluation

    task, log, memories = line(), Log(), Kept()
    algorithm = with_evaluation(pipe(fedavg(sgd(task)), counting("one")), evaluate(task), sorted(holding(**TWO)))
    states(algorithm, holding(**TWO), 2, task, log=log, memories=memories)
    assert not log.of("failure")
    assert float(memories.get(ClientId("a"))["~one/count"]) == 2
    assert all("one count" not in e.metrics for e in log.of("update", "evaluate"))


def test_a_decode_happens_before_the_fold_and_ends_a_secure_sum() -> None:
    def encode(a: Assignment, told: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        return update._replace(tree=tree.scale(update.tree, 2.0)), {}

    double: Transform[None] = Transform(
        "double", lambda w: None, lambda s: {}, encode, lambda u, like: u._replace(tree=tree.scale(u.tree, 0.5)),
        lambda s, r: (r.tree, s),
    )  # fmt: skip
    task = line()
    algorithm = pipe(fedavg(sgd(task, lr=0.5, batch_size=None)), clip(1.0), double)
    assert weights(algorithm, holding(**TWO), 1, task) == pytest.approx([0.875])
    request = next(algorithm.round(algorithm.init({"weight": torch.zeros(1, 1)}), [ClientId("a")]))
    assert request.decode is not None, "who sums without seeing the updates can't undo the code"
    assert [clash.at for clash in clashes([Link("double", frozenset())], secure_sum=True)] == [0]
    check_transform(double)


def test_the_catalogue_has_them() -> None:
    assert {"clip", "cast"} <= {entry.name for entry in catalog.entries("transform")}


def lying(change: Any, **properties: bool) -> Transform[None]:
    def encode(a: Assignment, told: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        return change(update), {}

    return Transform("liar", lambda w: None, lambda s: {}, encode, None, lambda s, r: (r.tree, s), Properties(**properties))


def with_tree(f: Any) -> Any:
    return lambda u: u._replace(tree={n: f(x) for n, x in u.tree.items()})


def in_place(update: Update) -> Update:
    for x in update.tree.values():
        x.mul_(2)
    return update


LIARS: dict[str, Transform[None]] = {
    "writes to the update": lying(in_place),
    "loses the metrics": lying(lambda u: u._replace(metrics={})),
    "another place": lying(lambda u: u._replace(round=0)),
    "other shapes": lying(with_tree(lambda x: x.reshape(-1))),
    "global randomness": lying(with_tree(lambda x: x + torch.rand(()))),
    "hides a NaN": lying(with_tree(lambda x: x.nan_to_num())),
    "not linear": lying(with_tree(torch.sign), linear=True),
    "biased": lying(with_tree(lambda x: x * 1.1), unbiased=True),
    "unbounded": lying(with_tree(lambda x: x), bounds_norm=True),
    "no memory": lying(lambda u: u, memory=True),
}


@pytest.mark.parametrize("name", LIARS)
def test_a_transform_that_breaks_a_law_is_found(name: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_transform(LIARS[name])


def test_an_error_above_the_bound_is_found() -> None:
    with pytest.raises(AssertionError, match="of the norm, above"):
        check_transform(cast("bf16"), tolerance=2**-6, error=2**-12)


def test_a_norm_that_overflows_float32_is_clipped_too() -> None:
    got = encoded(clip(1.0), {"w": torch.tensor([3e30, 4e30])}).tree["w"]
    torch.testing.assert_close(got, torch.tensor([0.6, 0.8]))
    tiny: Tensor = encoded(clip(1e-30), {"w": torch.tensor([3e-25, 4e-25])}).tree["w"]
    torch.testing.assert_close(tiny, torch.tensor([6e-31, 8e-31]), rtol=1e-4, atol=0)


def test_staleness_is_applied_after_the_code_is_undone() -> None:
    """A code of indices can't be scaled: the policy's factor reaches the aggregator beside it."""

    def encode(assignment: Assignment, broadcast: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        return update._replace(tree={"at": torch.tensor([1]), "is": update.tree["w"][1:]}), {}

    def decode(update: Update, like: Tree | None) -> Update:
        return update._replace(tree={"w": torch.zeros(2).index_copy(0, update.tree["at"], update.tree["is"])})

    code = Transform("last", lambda w: None, lambda s: {}, encode, decode, lambda s, r: (r.tree, s))
    whole = pipe(fedavg(sgd(line())), code)
    request = next(whole.round((State({"w": torch.zeros(2)}, ()), None), [ClientId("a")]))
    fold = Fold(request, buffered(1, buffer=1, staleness_exponent=1.0), now=3, in_order=False)
    sent, _ = encode(NOWHERE, {}, {}, Update(0, ClientId("a"), "train", {"w": torch.tensor([5.0, 8.0])}, 1.0, {}))
    fold.hear(fold.judge(sent), lambda update: lambda: update)
    assert fold.finish().tree["w"].tolist() == [0.0, 2.0]  # 8 / (1 + 3)
