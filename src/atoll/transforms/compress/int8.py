"""8-bit integers in blocks, each with a scale of its own: x = scale q, scale = max |x| / 127 of its block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError
from atoll.transforms.compress.blocks import expect, quantised, times, width
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.types import Properties, Transform

TRAFFIC = {"bits": 8.125}
_LEVELS = 127


def int8(block: int = 256, rounding: Literal["nearest", "stochastic"] = "nearest") -> Transform[None]:
    """Floating-point tensors as 8-bit integers and one float32 scale every `block` entries: a quarter of the bytes.

    `rounding`: "nearest" errs by half a step at most; "stochastic" by a whole one, and its mean is the value itself
    (QSGD, Alistarh et al. 2017, arXiv:1610.02132, section 3.1, with the norm of a block instead of that of the vector).

    Raises:
        ConfigError: block is below 2, or another rounding.

    >>> from atoll.types import Update
    >>> sent = int8().encode(None, {}, {}, Update(0, "a", "train", {"w": torch.tensor([1.0, -0.5])}, 1.0, {}))[0]
    >>> sent.tree["int8/1=q"].tolist(), int8().decode(sent, None).tree["w"].tolist()
    ([127, -64], [1.0, -0.5039370059967041])
    """
    block, stochastic = width("int8", block), is_stochastic("int8", rounding)

    def encode(x: Tensor, seed: int) -> Parts:
        q, scale = quantised(x, block, _LEVELS, rng.seed(seed, "int8") if stochastic else None)
        return {"q": q, "scale": scale}

    def decode(parts: Parts, n: int) -> Tensor:
        q = expect(parts["q"], torch.int8, n, "int8 codes")
        return times(q, expect(parts["scale"], torch.float32, -(-n // block), "int8 scales"), block)

    return coded("int8/1", Coder(encode, decode), Properties(unbiased=stochastic))


def is_stochastic(codec: str, rounding: str) -> bool:
    """Whether a codec's rounding is the stochastic one, if it is one of the two."""
    if rounding not in ("nearest", "stochastic"):
        raise ConfigError(f"{codec} rounding = {rounding!r}: must be nearest or stochastic")
    return rounding == "stochastic"
