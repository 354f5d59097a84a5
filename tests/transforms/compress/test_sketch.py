"""A sketch is linear, its hashes are those that are written down, and what the server does not apply it owes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll import rng, tree
from atoll.errors import ConfigError, TreeError
from atoll.testing.transform import check_transform
from atoll.transforms.compose import clashes
from atoll.transforms.compress import sketch as module
from atoll.transforms.compress.feedback import feedback
from atoll.transforms.compress.sketch import Owed, sketch
from atoll.transforms.compress.top_k import top_k
from atoll.transforms.pipe import links_of
from atoll.types import ClientId, Reduced, Transform, Tree, Update

SUMS = "sketch/1=sums"


def sent(one: Transform[Owed], state: Owed, values: Tree) -> Tree:
    update = Update(0, ClientId("a"), "train", values, 1.0, {})
    nobody: Any = None
    return one.encode(nobody, one.broadcast(state), {}, update)[0].tree


def finished(one: Transform[Owed], state: Owed, encoded: Tree) -> tuple[Tree, Owed]:
    return one.finish(state, Reduced(encoded, [ClientId("a")], {}))


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_sketch_obeys_the_laws(rows: int) -> None:
    check_transform(sketch(share=0.5, rows=rows, fraction=0.1))


def place(index: int, columns: int, factor: int, offset: int) -> tuple[int, int]:
    """Column and sign in plain Python: MurmurHash3's fmix32 of factor * index + offset."""
    x = (index * factor + offset) % 2**32
    for shift, times in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> shift)) * times % 2**32
    return int(x % 2**31 * (columns / 2**31)), -1 if x >= 2**31 else 1


def test_the_hash_ends_as_published() -> None:
    assert place(1, 2**31, 1, 0) == (0x514E28B7, 1)  # fmix32(1) of MurmurHash3


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), rows=st.integers(1, 6), share=st.floats(0.1, 1.0), seed=st.integers(0, 2**63 - 1))
def test_the_table_is_the_sum_that_is_written_down(n: int, rows: int, share: float, seed: int) -> None:
    x = normal(n, seed % 1000)
    one = sketch(share=share, rows=rows, seed=seed)
    found = sent(one, one.init({"w": x}), {"w": x})[SUMS]
    columns = max(round(share * n / rows), 1)
    keys = torch.randint(-(1 << 31), 1 << 31, (rows, 2), generator=rng.generator(seed, "sketch")).tolist()
    wanted = torch.zeros(rows, columns, dtype=torch.float64)
    for row, (factor, offset) in enumerate(keys):
        for index, value in enumerate(x.tolist()):
            column, sign = place(index, columns, factor | 1, offset)
            wanted[row, column] += sign * value
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 9), seed=st.integers(0, 999))
def test_the_median_is_the_median(rows: int, seed: int) -> None:
    each = normal(rows * 7, seed).view(rows, 7)
    torch.testing.assert_close(module._median(list(each)), each.quantile(0.5, dim=0), rtol=1e-6, atol=1e-6)


def test_hashes_spread_evenly_and_independently() -> None:
    n, columns = 200_000, 100
    rows = [module._place(torch.arange(n, dtype=torch.int32), columns, key) for key in module._keys(3, 4)]
    for column, sign in rows:
        counts = torch.bincount(column, minlength=columns).double()
        assert len(counts) == columns
        # Chi-squared with 99 degrees of freedom: mean 99, standard deviation 14
        assert float(((counts - n / columns) ** 2 / (n / columns)).sum()) < 99 + 6 * 14
        assert abs(float((sign < 0).double().mean()) - 0.5) < 6 * 0.5 / math.sqrt(n)
    for (a, s), (b, t) in pairwise(rows):
        assert abs(float((a == b).double().mean()) - 1 / columns) < 6 * math.sqrt(1 / columns / n)
        assert abs(float((s == t).double().mean()) - 0.5) < 6 * 0.5 / math.sqrt(n)


def test_few_large_entries_among_small_ones_are_found_in_one_round() -> None:
    n, k = 70_000, 10  # more than a chunk
    x = 1e-3 * normal(n)
    where = torch.randperm(n, generator=torch.Generator().manual_seed(1))[:k]
    x[where] = 10.0 * torch.where(normal(k) > 0, 1.0, -1.0)
    one = sketch(share=0.5, rows=5, fraction=k / n)
    out, state = finished(one, one.init({"w": x}), sent(one, one.init({"w": x}), {"w": x}))
    assert out["w"].nonzero().flatten().tolist() == sorted(where.tolist())
    torch.testing.assert_close(out["w"][where], x[where], atol=0.1, rtol=0)
    assert float(state.error.norm()) < 0.1 * float(x.norm())


def test_what_is_owed_is_the_sketch_of_what_was_not_applied() -> None:
    """Over any rounds, S(sum of updates - sum of what was applied) = S_e, since the sketch is linear."""
    one, like = sketch(share=0.3, fraction=0.02), {"w": torch.zeros(30, 20), "b": torch.zeros(17)}
    state, left = one.init(like), tree.zeros(like)
    for seed in range(5):
        update: Tree = {"w": normal(600, seed).view(30, 20), "b": normal(17, seed + 50)}
        out, state = finished(one, state, sent(one, state, update))
        assert sum(int(x.count_nonzero()) for x in out.values()) == round(0.02 * 617)
        left = tree.sub(tree.add(left, update), out)
    torch.testing.assert_close(sent(one, state, left)[SUMS], state.error, rtol=1e-4, atol=1e-4)


def test_a_small_entry_is_applied_in_a_later_round() -> None:
    """One entry of 1.0 and one of 0.3 in each round, one applied a round: the small one has its turn once 0.3 t > 1."""
    x = torch.zeros(2000)
    x[7], x[70] = 1.0, 0.3
    one = sketch(share=0.5, fraction=1 / 2000)
    state, applied = one.init({"w": x}), []
    for _ in range(5):
        out, state = finished(one, state, sent(one, state, {"w": x}))
        applied.append({at: round(float(out["w"][at]), 4) for at in out["w"].nonzero().flatten().tolist()})
    assert applied == [{7: 1.0}, {7: 1.0}, {7: 1.0}, {70: 1.2}, {7: 2.0}]


@pytest.mark.parametrize("tail", [0.0, 0.7])
def test_by_default_what_is_owed_grows_no_faster_than_what_is_sent(tail: float) -> None:
    """Even of dense updates, where most of what seems large is a collision: false entries are taken back later."""
    n, draw, one = 20_000, torch.Generator().manual_seed(0), sketch()
    same = torch.randn(n, generator=draw) * torch.rand(n, generator=draw) ** -tail
    same /= same.norm()
    state, left = one.init({"w": same}), torch.zeros(n)
    for _ in range(60):
        update = same + 0.5 * torch.randn(n, generator=draw) / math.sqrt(n)
        out, state = finished(one, state, sent(one, state, {"w": update}))
        left += update - out["w"]
    assert float(left.norm()) < 1.25 * 60


def test_all_clients_hash_alike_and_another_seed_does_otherwise() -> None:
    x: Tree = {"w": normal(500)}
    tables = [sent(one, one.init(x), x)[SUMS] for one in (sketch(seed=5), sketch(seed=5), sketch(seed=6))]
    assert tables[0].equal(tables[1])
    assert not tables[0].equal(tables[2])


@pytest.mark.parametrize("size", [1e-42, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_small_large_and_narrow_values(size: float, dtype: torch.dtype) -> None:
    x: Tree = {"w": torch.zeros(100, dtype=dtype)}
    x["w"][3] = size
    one = sketch(share=0.5, fraction=0.01)
    out, _ = finished(one, one.init(x), sent(one, one.init(x), x))
    assert out["w"].dtype == dtype
    torch.testing.assert_close(out["w"], x["w"], rtol=1e-6, atol=1e-44)


def test_odd_trees_survive() -> None:
    values: Tree = {"scalar": torch.tensor(3.0), "empty": torch.ones(0, 3), "n": torch.tensor([1, 2])}
    one = sketch(share=1.0, rows=1, fraction=1.0)
    encoded = sent(one, one.init(values), values)
    assert one.form is not None
    assert {name: x.shape for name, x in one.form(values).items()} == {name: x.shape for name, x in encoded.items()}
    out, _ = finished(one, one.init(values), encoded)
    assert (float(out["scalar"]), out["empty"].shape, out["n"].tolist()) == (3.0, (0, 3), [1, 2])
    nothing: Tree = {"n": torch.tensor([1, 2])}
    assert finished(one, one.init(nothing), sent(one, one.init(nothing), nothing))[0]["n"].tolist() == [1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen_in_the_table(bad: float) -> None:
    one, x = sketch(), {"w": normal(1000)}
    x["w"][5] = bad
    assert not tree.finite(sent(one, one.init(x), x))


def test_an_update_of_another_size_than_the_model_is_refused() -> None:
    one = sketch()
    with pytest.raises(TreeError, match="not of the model"):
        sent(one, one.init({"w": torch.zeros(10)}), {"w": torch.zeros(11)})


def test_a_second_memory_of_what_was_lost_is_refused() -> None:
    twice = [feedback([top_k(0.1)], "always"), sketch()]
    assert [clash.at for clash in clashes(links_of(twice))]
    assert not list(clashes(links_of([sketch()]), secure_sum=True))


@pytest.mark.parametrize(
    "wrong", [{"share": 0.0}, {"share": 1.5}, {"rows": 0}, {"fraction": 0.0}, {"fraction": 2.0}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        sketch(**wrong)


def test_the_kit_finds_a_server_that_writes_to_its_state() -> None:
    one = sketch(share=0.5, fraction=0.1)

    def finish(state: Owed, reduced: Reduced) -> tuple[Tree, Owed]:
        out, after = one.finish(state, reduced)
        state.error.copy_(after.error)
        return out, state

    with pytest.raises(AssertionError, match="wrote to the state"):
        check_transform(one._replace(finish=finish))


def test_the_kit_finds_a_server_that_forgets_at_a_checkpoint() -> None:
    one, kept = sketch(share=0.5, fraction=0.1), dict[int, Tensor]()

    def finish(state: Owed, reduced: Reduced) -> tuple[Tree, Owed]:
        whole = state._replace(error=kept.get(id(state), state.error))
        out, after = one.finish(whole, reduced)
        bare = after._replace(error=torch.zeros_like(after.error))
        held.append(bare)  # so that no other state is given its id
        kept[id(bare)] = after.error
        return out, bare

    held: list[Owed] = []
    with pytest.raises(AssertionError, match="from a checkpoint finishes otherwise"):
        check_transform(one._replace(finish=finish))
