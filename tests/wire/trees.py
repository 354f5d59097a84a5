"""Trees of every kind that a frame carries, for hypothesis, and what it means that two are the same."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from atoll import tree
from atoll.types import Assignment, ClientId, Failure, Tree, Update
from atoll.wire.table import _DTYPES

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype | None = None) -> Tensor:
    """Any bits of any dtype, NaN included; sometimes a view that is not contiguous."""
    dtype = dtype or draw(st.sampled_from(_DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    count = math.prod(shape)
    raw = bytearray(draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)))
    if dtype == torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    x = torch.frombuffer(raw, dtype=torch.uint8).view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
    way = draw(st.sampled_from(["as it is", "transposed", "every second", "expanded"]))
    if way == "transposed" and x.dim() > 1:
        return x.transpose(0, -1)
    if way == "every second" and x.dim():
        return x[::2]
    return x.unsqueeze(0).expand(3, *shape) if way == "expanded" else x


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A dict of any tensors, or views of one buffer."""
    if draw(st.booleans()):
        return draw(st.dictionaries(names, tensors(), max_size=5))
    dtype = draw(st.sampled_from(_DTYPES))
    return tree.pack({name: x.contiguous() for name, x in draw(st.dictionaries(names, tensors(dtype), max_size=5)).items()})


@st.composite
def values(draw: st.DrawFn) -> Assignment | Update | Failure:
    """Anything that is put in a frame."""
    place = (draw(st.integers(0, 2**63)), ClientId(draw(names)), draw(names))
    kind = draw(st.sampled_from(["assignment", "update", "failure"]))
    if kind == "failure":
        return Failure(*place, draw(names), draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=200)))
    if kind == "assignment":
        return Assignment(*place, draw(trees()), draw(st.integers(0, 2**63)))
    metrics = draw(st.dictionaries(names, st.floats(), max_size=4))
    return Update(*place, draw(trees()), draw(st.floats()), metrics)


def same(a: Tree, b: Tree) -> bool:
    """Names in their order, dtypes, shapes and every bit."""
    if list(a) != list(b):
        return False
    pairs = [(x, b[name]) for name, x in a.items()]
    if any(x.dtype != y.dtype or x.shape != y.shape for x, y in pairs):
        return False
    return all(bits(x) == bits(y) for x, y in pairs)


def bits(x: Tensor) -> bytes:
    """A tensor's memory."""
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
