"""Packed codes come back, take the bytes that they should, and are refused where they can't be what was packed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import TreeError
from atoll.transforms.compress import bits as packing


@settings(deadline=None, max_examples=100)
@given(bits=st.integers(1, 4), n=st.integers(0, 100), seed=st.integers(0, 99))
def test_the_first_code_is_in_the_lowest_bits(bits: int, n: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    whole = sum(code << bits * at for at, code in enumerate(codes.tolist()))  # one long number, in plain Python
    packed = packing.pack(codes, bits)
    assert bytes(packed.tolist()) == whole.to_bytes(-(-n * bits // 8), "little")
    assert packing.unpack(packed, bits, n).equal(codes)


@pytest.mark.parametrize("bits", range(1, 5))
@pytest.mark.parametrize("n", [1 << 16, (1 << 16) + 1, 3 * (1 << 16) + 13])
def test_codes_of_several_chunks_come_back(bits: int, n: int) -> None:
    codes = torch.randint(0, 1 << bits, (n,), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    assert packing.unpack(packing.pack(codes, bits), bits, n).equal(codes)


@pytest.mark.parametrize(
    ("codes", "bits"),
    [
        (torch.tensor([4], dtype=torch.uint8), 2),
        (torch.tensor([1]), 2),
        (torch.zeros(1, 3, dtype=torch.uint8), 2),
        (torch.zeros(3, dtype=torch.uint8), 0),
        (torch.zeros(3, dtype=torch.uint8), 5),
    ],
)
def test_what_are_no_codes_is_refused(codes: torch.Tensor, bits: int) -> None:
    with pytest.raises(TreeError):
        packing.pack(codes, bits)


@pytest.mark.parametrize(
    ("packed", "bits", "n"),
    [
        (torch.zeros(3, dtype=torch.uint8), 2, 8),
        (torch.zeros(3, dtype=torch.uint8), 2, 13),
        (torch.zeros(3, dtype=torch.uint8), 2, 1 << 50),
        (torch.zeros(3, dtype=torch.uint8), 5, 4),
        (torch.zeros(1, 3, dtype=torch.uint8), 4, 6),
        (torch.zeros(3), 4, 6),
    ],
)
def test_what_is_not_so_many_packed_codes_is_refused(packed: torch.Tensor, bits: int, n: int) -> None:
    with pytest.raises(TreeError):
        packing.unpack(packed, bits, n)
