"""Positions come back, take few bytes, and hostile bytes are never positions outside of the vector."""

from __future__ import annotations

import math

import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.errors import TreeError
from atoll.transforms.compress import positions


def data(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


@settings(deadline=None, max_examples=200)
@given(n=st.integers(1, 5000), share=st.floats(0, 1), seed=st.integers(0, 999), together=st.booleans())
@example(n=1, share=0.0, seed=0, together=False)
@example(n=1, share=1.0, seed=0, together=False)
@example(n=4096, share=1.0, seed=0, together=True)
def test_positions_come_back(n: int, share: float, seed: int, together: bool) -> None:
    k = round(share * n)
    at = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k].sort().values
    at = torch.arange(n - k, n) if together else at
    assert positions.read(positions.write(at, n), k, n).tolist() == at.tolist()


@pytest.mark.parametrize("fraction", [0.0003, 0.01, 0.1, 0.5])
def test_independent_positions_are_near_their_entropy(fraction: float) -> None:
    n = 1_000_000
    at = torch.rand(n, generator=torch.Generator().manual_seed(1)).lt(fraction).nonzero().squeeze(1)
    entropy = -n * (fraction * math.log2(fraction) + (1 - fraction) * math.log2(1 - fraction))
    assert 8 * len(positions.write(at, n)) < 1.06 * entropy  # a Rice code of geometric gaps: 0.4 % at 1 %, 5 % at a half


def test_clustered_positions_take_the_bitmap() -> None:
    n, rows = 1 << 20, torch.arange(0, 1 << 20, 1 << 13)  # one row of 64 entries in 8,192
    at = (rows.view(-1, 1) + torch.arange(64)).view(-1)
    written = positions.write(at, n)
    assert written[0] == 0
    assert 8 * len(written) < 0.6 * len(at)  # the gaps alone would take a bit each
    assert positions.read(written, len(at), n).equal(at)


@settings(deadline=None, max_examples=400)
@given(raw=st.binary(max_size=60), k=st.integers(0, 60), n=st.integers(1, 500))
def test_any_bytes_are_positions_or_are_refused(raw: bytes, k: int, n: int) -> None:
    try:
        at = positions.read(torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else data(), k, n)
    except TreeError:
        return
    assert len(at) == k
    assert bool((at.diff() > 0).all())
    assert k == 0 or (at[0] >= 0 and at[-1] < n)


@settings(deadline=None, max_examples=200)
@given(n=st.integers(64, 4000), seed=st.integers(0, 99), byte=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_damaged_byte_gives_no_position_outside(n: int, seed: int, byte: int, flip: int) -> None:
    at = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: n // 4].sort().values
    written = positions.write(at, n)
    written[byte % len(written)] ^= flip
    try:
        found = positions.read(written, len(at), n)
    except TreeError:
        return
    assert len(found) == len(at)
    assert bool((found.diff() > 0).all())
    assert 0 <= int(found[0]) <= int(found[-1]) < n


def test_what_unpacks_to_more_than_a_bitmap_is_refused_before_it_does() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(TreeError, match="takes 13 bytes; an encoded update announces 67108864"):
        positions.read(data(0, *bomb), 1, 100)
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(13))
    with pytest.raises(TreeError):
        positions.read(data(0, *unsaid), 0, 100)


@pytest.mark.parametrize(
    ("written", "k", "n", "says"),
    [
        (data(), 0, 4, "should be bytes"),
        (torch.zeros(3), 0, 4, "should be bytes"),
        (torch.zeros(1, 3, dtype=torch.uint8), 0, 4, "should be bytes"),
        (data(1, 0), 5, 4, "5 positions of 4"),
        (data(2, 0), 0, 4, "of the form 2"),
        (data(1), 1, 4, "do not fit"),
        (data(1, 3, 0, 0, 0, 128), 1, 4, "do not fit"),
        (data(1, 63, *[255] * 63, 128), 1, 4, "do not fit"),
        (data(1, 0, 0b11000000), 1, 4, "2 gaps of 1"),
        (data(1, 0, 0b00001000), 1, 4, "1 positions for 1 values"),
        (data(1, 1, 0, 0b00010000), 1, 4, "beyond its 4"),
        (data(0, 1, 2, 3), 1, 4, "bitmap"),
    ],
)
def test_what_is_wrong_is_said(written: Tensor, k: int, n: int, says: str) -> None:
    with pytest.raises(TreeError, match=says):
        positions.read(written, k, n)
