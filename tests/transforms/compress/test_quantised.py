"""Codecs of few levels keep their bounds and rates, hide nothing that is not a number, and refuse what none of them made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll import tree
from atoll.errors import ConfigError, TreeError
from atoll.testing.store import same_bits
from atoll.testing.transform import check_transform
from atoll.transforms.compress import rans
from atoll.transforms.compress.cast import cast
from atoll.transforms.compress.ecsq import ecsq
from atoll.transforms.compress.fp8 import fp8
from atoll.transforms.compress.int4 import int4
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.sign import sign
from atoll.transforms.compress.ternary import ternary
from atoll.transforms.compress.zstd import zstd
from atoll.types import Assignment, ClientId, Transform, Tree, Update
from atoll.wire import frame

LARGEST = torch.finfo(torch.float32).max
CODECS: dict[str, Callable[[], Transform[Any]]] = {
    "int8": int8,
    "int8 of 2": lambda: int8(2),
    "int8 stochastic": lambda: int8(rounding="stochastic"),
    "int4": int4,
    "int4 stochastic": lambda: int4(rounding="stochastic"),
    "fp8": fp8,
    "sign": sign,
    "ternary": ternary,
    "ternary of 16": lambda: ternary(16),
    "ecsq": ecsq,
    "ecsq fine": lambda: ecsq(1 / 64),
    "ecsq coarse": lambda: ecsq(4.0),
    "ecsq dithered": lambda: ecsq(0.5, dither=True),
    "zstd": zstd,
}


def sent(codec: Transform[Any], values: Tree, seed: int = 0) -> Update:
    place = Assignment(0, ClientId("a"), "train", {}, seed)
    return codec.encode(place, {}, {}, Update(0, ClientId("a"), "train", values, 1.0, {}))[0]


def received(codec: Transform[Any], update: Update, like: Tree | None = None) -> Tree:
    assert codec.decode is not None
    return codec.decode(update, like).tree


def through(codec: Transform[Any], x: Tensor, seed: int = 0) -> Tensor:
    return received(codec, sent(codec, {"x": x}, seed), {"x": x})["x"]


def gaussian(n: int = 200_000) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(3))


def nmse(codec: Transform[Any], x: Tensor) -> float:
    return float((through(codec, x) - x).double().square().sum() / x.double().square().sum())


def bits(codec: Transform[Any], x: Tensor) -> float:
    return frame.size(sent(codec, {"x": x})).payload * 8 / len(x)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_obeys_the_laws(name: str) -> None:
    # Of the norm: half a step of 1/127 or of 2/15 of the largest entry, 1/16 of each, and no loss; the others have no bound
    bound = {"int8": 0.01, "int8 of 2": 0.01, "int4": 0.2, "fp8": 0.0625, "ecsq": 0.51, "ecsq fine": 0.01, "zstd": 0.0}
    check_transform(CODECS[name](), error=bound.get(name))


SPECIAL = [0.0, -0.0, 1e-45, -1e-42, 1e-38, -1e-30, 1.0, 1e30, 1e38, LARGEST, -LARGEST]
values = st.lists(st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False, allow_infinity=False)), max_size=40)


@settings(deadline=None, max_examples=40)
@given(found=values, seed=st.integers(0, 2**63 - 1))
@pytest.mark.parametrize("name", CODECS)
def test_what_is_finite_stays_finite(name: str, found: list[float], seed: int) -> None:
    x = torch.tensor(found, dtype=torch.float32)
    assert through(CODECS[name](), x, seed).isfinite().all()


@settings(deadline=None, max_examples=40)
@given(found=values.filter(len), bad=st.sampled_from([math.nan, math.inf, -math.inf]), at=st.integers(0, 10**6))
@pytest.mark.parametrize("name", CODECS)
def test_what_is_not_finite_is_not_hidden(name: str, found: list[float], bad: float, at: int) -> None:
    found[at % len(found)] = bad
    assert not through(CODECS[name](), torch.tensor(found, dtype=torch.float32)).isfinite().all()


@settings(deadline=None, max_examples=60)
@given(found=values.filter(len), block=st.integers(2, 50))
def test_errors_are_within_the_step(found: list[float], block: int) -> None:
    x = torch.tensor(found, dtype=torch.float32)
    tops = torch.cat([b.abs().max().expand(len(b)) for b in x.split(block)]).double().clamp(min=1e-35)  # type: ignore[no-untyped-call]
    for codec, step in ((int8(block), 0.5 / 127), (int4(block), 0.54 / 7.5)):
        assert ((through(codec, x).double() - x).abs() <= step * tops * (1 + 1e-5)).all()
    for codec, step in ((int8(block, "stochastic"), 1 / 127), (int4(block, "stochastic"), 1.02 / 7), (ternary(block), 1)):
        assert ((through(codec, x).double() - x).abs() <= step * tops * (1 + 1e-4)).all()
    floats = through(fp8(block), x).double()
    assert ((floats - x).abs() <= x.double().abs() / 16 * (1 + 1e-5) + tops * 2**-18).all()


@settings(deadline=None, max_examples=60)
@given(found=values.filter(len), step=st.floats(1 / 64, 16), dither=st.booleans(), seed=st.integers(0, 99))
def test_ecsq_errs_by_half_a_step(found: list[float], step: float, dither: bool, seed: int) -> None:
    x = torch.tensor(found, dtype=torch.float32)
    rms = float(x.double().square().mean().sqrt())
    off = (through(ecsq(step, dither), x, seed).double() - x).abs()
    assert (off <= max(step * rms, 2e-38) * (0.5 + 1e-3)).all()


@pytest.mark.parametrize("name", CODECS)
def test_tensors_of_all_kinds_come_back(name: str) -> None:
    codec = CODECS[name]()
    given_: Tree = {
        "bf16": gaussian(30).bfloat16().view(5, 6),
        "half": torch.tensor(1.5, dtype=torch.float16),
        "double": torch.ones(3, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
    }
    got = received(codec, sent(codec, given_), given_)
    assert {n: (x.dtype, x.shape) for n, x in got.items()} == {n: (x.dtype, x.shape) for n, x in given_.items()}
    assert all(torch.equal(got[name], given_[name]) for name in ("count", "mask"))
    if name == "zstd":
        assert same_bits(dict(got), dict(given_))
    for nothing in ({}, {"none": torch.zeros(0, 3)}):
        assert same_bits(dict(received(codec, sent(codec, nothing), nothing)), nothing)


def test_error_and_rate_on_a_gaussian() -> None:
    """Uniform steps d err by d^2 / 12; the others by moments of the normal distribution."""
    x = gaussian()
    assert nmse(int8(), x) < 6e-5
    assert nmse(int4(), x) == pytest.approx(0.0105, rel=0.03)
    assert nmse(sign(1 << 16), x) == pytest.approx(1 - 2 / math.pi, rel=0.01)
    largest = x[: len(x) // 256 * 256].view(-1, 256).abs().amax(1).mean()  # E (s |x| - x^2) = s E|x| - 1, and E|x| = .798
    assert nmse(ternary(), x) == pytest.approx(float(largest) * math.sqrt(2 / math.pi) - 1, rel=0.02)
    assert nmse(ecsq(), x) == pytest.approx(1 / 12, rel=0.02)
    assert nmse(ecsq(0.25), x) == pytest.approx(1 / 16 / 12, rel=0.02)
    assert nmse(ecsq(2.0, dither=True), x) == pytest.approx(4 / 12, rel=0.02)
    for codec, most in ((int8(), 8.126), (int4(), 4.251), (fp8(), 8.126), (sign(), 1.126), (ternary(), 1.24), (ecsq(), 2.12)):
        assert bits(codec, x) <= most


@pytest.mark.parametrize("step", [0.125, 0.25, 1.0, 2.0, 4.0])
def test_the_stream_is_within_a_hundredth_of_the_entropy(step: float) -> None:
    x = gaussian()
    p = (x / (step * x.square().mean().sqrt())).round().unique(return_counts=True)[1].double() / len(x)  # type: ignore[no-untyped-call]
    assert bits(ecsq(step), x) <= 1.01 * float(-(p * p.log2()).sum())


def test_the_histogram_follows_the_layers() -> None:
    """Two halves of different size: coded apart they need less than the entropy of all entries together."""
    x = torch.cat([gaussian(1 << 17), 8 * gaussian(1 << 17)])
    p = (x / x.square().mean().sqrt()).round().unique(return_counts=True)[1].double() / len(x)  # type: ignore[no-untyped-call]
    assert bits(ecsq(), x) < 0.9 * float(-(p * p.log2()).sum())


def test_dither_is_uniform_noise_whatever_the_entries() -> None:
    x, step = torch.cat([torch.full((50_000,), 0.3), torch.tensor([200.0])]), 2.0
    size = step * float(x.square().mean().sqrt())
    off = (through(ecsq(step, dither=True), x) - x)[:-1] / size
    assert float(off.mean()) == pytest.approx(0, abs=5 / math.sqrt(12 * 50_000))
    assert float(off.square().mean()) == pytest.approx(1 / 12, rel=0.02)
    assert through(ecsq(step), x)[0] == 0  # what would be lost without


@settings(deadline=None, max_examples=60)
@given(
    codes=st.lists(st.one_of(st.integers(-3, 3), st.integers(-3000, 3000), st.integers(-(2**30), 2**30)), min_size=1, max_size=99)
)
def test_any_integers_come_back(codes: list[int]) -> None:
    x = torch.tensor(codes, dtype=torch.int32)
    parts = rans.packed(len(x), lambda at: x[at])
    assert torch.cat([found for _, found in rans.unpacked(parts, len(x))]).tolist() == codes


def test_integers_of_several_chunks_come_back() -> None:
    x = (gaussian(3 * rans.CHUNK + 17) * 3).round().int()
    x[:: rans.CHUNK // 2] = 100_000
    parts = rans.packed(len(x), lambda at: x[at])
    assert len(parts["large"]) == 7
    assert torch.equal(torch.cat([found for _, found in rans.unpacked(parts, len(x))]), x)


def test_the_stream_is_the_same_everywhere() -> None:
    """Bytes that a server of another machine or version must read as these integers."""
    x = torch.tensor([0, 0, 1, -1, 0, 2, 0, 5000, -1, 0], dtype=torch.int32)
    parts = rans.packed(len(x), lambda at: x[at])
    assert parts["model"].tolist() == [2, 0, 255, 28, 12, 40, 40, 40]
    assert parts["large"].tolist() == [5000]
    assert parts["words"].tolist() == [1196624279, 337]


def hostile(update: Update, draw: torch.Generator) -> Update:
    """One part of an encoded update bent: its values, length, dtype or shape, or gone."""
    parts = dict(update.tree)
    name = sorted(parts)[int(torch.randint(len(parts), (), generator=draw))]
    part, kind = parts[name], int(torch.randint(7, (), generator=draw))
    octets = part.clone().reshape(-1).contiguous().view(torch.uint8)
    if kind == 0 and len(octets):
        octets[torch.randint(len(octets), (3,), generator=draw)] = torch.randint(256, (3,), generator=draw).to(torch.uint8)
        parts[name] = octets.view(part.dtype).view(part.shape)
    elif kind == 1:
        parts[name] = part.reshape(-1)[: part.numel() // 2]
    elif kind == 2:
        parts[name] = torch.cat([part.reshape(-1), part.reshape(-1)])
    elif kind == 3:
        parts[name] = part.to(torch.int64)
    elif kind == 4:
        parts[name] = part.reshape(1, -1)
    elif kind == 5:
        parts[name] = octets.random_(generator=draw).view(part.dtype).view(part.shape)
    else:
        del parts[name]
    return update._replace(tree=parts)


@pytest.mark.parametrize("name", CODECS)
def test_a_hostile_update_is_refused_or_decodes_to_its_size(name: str) -> None:
    codec, x = CODECS[name](), {"a": gaussian(5000).view(50, 100), "b": torch.ones(3)}
    whole, refused = sent(codec, x), 0
    for seed in range(150):
        try:
            found = received(codec, hostile(whole, torch.Generator().manual_seed(seed)), x)
        except TreeError:
            refused += 1
            continue
        assert sum(v.numel() for v in found.values()) <= 5003 + (1 << 16) + 8 * 5003
    assert refused > 40


def test_a_stream_that_lies_about_its_size_is_refused() -> None:
    x = {"x": gaussian(1000)}
    update = sent(ecsq(), x)
    long = sent(ecsq(), {"x": gaussian(10**6)}).tree["ecsq/1=table"]
    with pytest.raises(TreeError, match="announces 1000000 entries"):
        received(ecsq(), update._replace(tree={**update.tree, "ecsq/1=table": long}), x)
    with pytest.raises(TreeError, match="histograms for only"):
        received(ecsq(), update._replace(tree={**update.tree, "ecsq/1=table": long}), {"x": torch.zeros(10**6)})
    more = torch.cat([update.tree["ecsq/1=words"], torch.ones(4, dtype=torch.int32)])
    with pytest.raises(TreeError, match="left over"):
        received(ecsq(), update._replace(tree={**update.tree, "ecsq/1=words": more}), x)
    marks = torch.tensor([0, 0, 255, 0], dtype=torch.uint8)  # every integer is larger than 0, and none follows
    with pytest.raises(TreeError, match="marks more"):
        received(ecsq(), update._replace(tree={**update.tree, "ecsq/1=model": marks}), x)
    nothing = torch.tensor([1, 0, 255, 255, 255, 255], dtype=torch.uint8)
    with pytest.raises(TreeError, match="share of nothing"):
        received(ecsq(), update._replace(tree={**update.tree, "ecsq/1=model": nothing}), x)


def test_a_small_stream_that_unpacks_to_much_is_refused() -> None:
    update = sent(zstd(), {"x": torch.zeros(10**7)})
    assert len(update.tree["zstd/1=data"]) < 10_000
    with pytest.raises(TreeError, match="are allowed here"):
        received(zstd(), update, {"x": torch.zeros(10)})
    small = sent(zstd(), {"x": torch.zeros(10)})
    with pytest.raises(TreeError, match="its table to 40"):
        received(
            zstd(), update._replace(tree={**update.tree, "zstd/1=table": small.tree["zstd/1=table"]}), {"x": torch.zeros(10)}
        )


def test_small_layers_do_not_drown() -> None:
    """A layer a million times smaller than its neighbour keeps its direction, where blocks do not straddle the two."""
    small, large = 1e-6 * gaussian(1024), gaussian(1024)
    for codec in (int8(), int4(), fp8(), sign(), ternary()):
        got = received(codec, sent(codec, {"large": large, "small": small}))["small"]
        assert torch.nn.functional.cosine_similarity(got, small, dim=0) > 0.5


def test_codecs_stack_up_to_the_one_that_leaves_bytes() -> None:
    x = {"x": gaussian(3000)}
    first = sent(int8(), x)
    second = sent(zstd(), first.tree)
    again = received(zstd(), second, x)
    assert same_bits(dict(again), dict(first.tree))
    assert tree.norm(tree.sub(received(int8(), second._replace(tree=again), x), x)) < 0.01 * tree.norm(x)
    narrow = sent(cast("bf16"), x).tree
    assert received(int4(), sent(int4(), narrow), x)["x"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: int8(1),
        lambda: int8(rounding="up"),  # type: ignore[arg-type]
        lambda: int4(0),
        lambda: int4(rounding=""),  # type: ignore[arg-type]
        lambda: fp8(-3),
        lambda: sign(1),
        lambda: ternary(1),
        lambda: ecsq(0.0),
        lambda: ecsq(math.nan),
        lambda: zstd(0),
    ],
)
def test_settings_out_of_range_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_properties_say_what_was_promised() -> None:
    made = {name: codec().properties for name, codec in CODECS.items()}
    unbiased = {"int8 stochastic", "int4 stochastic", "ternary", "ternary of 16", "ecsq dithered"}
    assert {name for name, each in made.items() if each.unbiased} == unbiased
    assert {name.split()[0] for name, each in made.items() if each.entropy} == {"ternary", "ecsq", "zstd"}
    assert not any(each.linear or each.memory for each in made.values())
