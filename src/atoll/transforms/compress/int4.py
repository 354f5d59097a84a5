"""4-bit integers in blocks, two to a byte, as Streaming DiLoCo sends outer gradients (arXiv:2501.18512)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from atoll import rng
from atoll.transforms.compress.blocks import AT_ONCE, expect, quantised, times, width
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.transforms.compress.int8 import is_stochastic
from atoll.types import Properties, Transform

TRAFFIC = {"bits": 4.25}
_LEVELS = 7
_REACH = 7.5  # what rounds to 7 errs by half a step at most, and the step is a fifteenth shorter


def int4(block: int = 64, rounding: Literal["nearest", "stochastic"] = "nearest") -> Transform[None]:
    """Floating-point tensors as 4-bit integers and one bfloat16 scale every `block` entries: a seventh of the bytes.

    x = scale q with q in -7..7 and scale = max |x| / 7.5 of the block, in bfloat16: an error of half a step, and on a
    Gaussian of 1 % of the squared norm. "stochastic" rounding has scale = max |x| / 7 and 2.2 times that error, and its
    mean is the value itself (QSGD, arXiv:1610.02132, section 3.1, with the norm of a block). A deviation from Streaming DiLoCo's
    E3M0: evenly spaced codes, which err less on a block of entries of one size.

    Raises:
        ConfigError: block is below 2, or another rounding.

    >>> from atoll.types import Update
    >>> sent = int4().encode(None, {}, {}, Update(0, "a", "train", {"w": torch.tensor([7.5, -2.1])}, 1.0, {}))[0]
    >>> sent.tree["int4/1=q"].tolist(), int4().decode(sent, None).tree["w"].tolist()
    ([231], [7.0, -2.0])
    """
    block, stochastic = width("int4", block), is_stochastic("int4", rounding)

    def encode(x: Tensor, seed: int) -> Parts:
        reach, draw = (_LEVELS, rng.seed(seed, "int4")) if stochastic else (_REACH, None)
        q, scale = quantised(x, block, reach, draw, torch.bfloat16)
        return {"q": packed(q), "scale": scale}

    def decode(parts: Parts, n: int) -> Tensor:
        q = expect(parts["q"], torch.uint8, -(-n // 2), "int4 codes")
        return times(unpacked(q)[:n], expect(parts["scale"], torch.bfloat16, -(-n // block), "int4 scales"), block)

    return coded("int4/1", Coder(encode, decode), Properties(unbiased=stochastic))


def packed(q: Tensor) -> Tensor:
    """int8 (n,) in -8..7 as uint8 (ceil(n / 2),): the first of each two in the low four bits.

    >>> packed(torch.tensor([1, -1, 2], dtype=torch.int8)).tolist()
    [241, 2]
    """
    if len(q) % 2:
        q = torch.nn.functional.pad(q, (0, 1))
    pairs, out = q.view(torch.int16), torch.empty(len(q) // 2, dtype=torch.uint8)
    for at in range(0, len(pairs), AT_ONCE):
        two = pairs[at : at + AT_ONCE]
        out[at : at + AT_ONCE] = (two & 15).bitwise_or_((two >> 4).bitwise_and_(240))
    return out


def unpacked(q: Tensor) -> Tensor:
    """What was `packed`, and a zero where n was odd."""
    out = torch.empty(2 * len(q), dtype=torch.int8)
    pairs = out.view(torch.int16)
    for at in range(0, len(q), AT_ONCE):
        two = q[at : at + AT_ONCE].to(torch.int16)
        pairs[at : at + AT_ONCE] = (two & 15).bitwise_or_((two & 240).bitwise_left_shift_(4))
        out[2 * at : 2 * (at + AT_ONCE)].bitwise_xor_(8).sub_(8)  # the sign of four bits, in eight
    return out
