"""Numbers as bytes: every bit of them, by hand and for whatever there is."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import FrameError
from atoll.wire.octets import Octets, number, real

BY_HAND = {
    0.0: "00",
    1.0: "02",
    63.0: "7e",
    64.0: "8001",
    200.0: "9003",
    2.0**53: "8080808080808020",  # twice that is bit 54: seven groups of 7 bits, then 2^5
    2.0**53 + 2: "010100000000004043",
    0.5: "01000000000000e03f",
    -1.0: "01000000000000f0bf",
    1e300: "019c7500883ce4377e",
    math.inf: "01000000000000f07f",
}


@pytest.mark.parametrize("x", BY_HAND, ids=str)
def test_a_count_takes_few_bytes_and_another_number_nine(x: float) -> None:
    assert real(x).hex() == BY_HAND[x]
    assert Octets(real(x)).real() == x


def test_zero_keeps_its_sign_and_a_nan_its_bits() -> None:
    assert real(-0.0).hex() == "010000000000000080"
    odd = struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0]
    assert real(odd).hex() == "01010000000000f8ff"


@given(x=st.floats() | st.floats(width=32) | st.integers(-(2**60), 2**60).map(float))
def test_every_bit_comes_back(x: float) -> None:
    octets = Octets(real(x) + b"!")
    assert struct.pack("<d", octets.real()) == struct.pack("<d", x)
    assert octets.left == 1
    assert len(real(x)) <= 9


@given(form=st.integers(2, 2**62).filter(lambda x: x % 2))
def test_a_form_that_is_none_is_refused(form: int) -> None:
    with pytest.raises(FrameError, match=f"of the form {form}"):
        Octets(number(form) + bytes(8)).real()
