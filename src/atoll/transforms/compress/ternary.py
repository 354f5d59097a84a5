"""Three values an entry, chosen at random so that their mean is the entry (TernGrad, Wen et al. 2017, arXiv:1705.07878)."""

from __future__ import annotations

import torch
from torch import Tensor

from atoll import rng
from atoll.transforms.compress import rans
from atoll.transforms.compress.blocks import expect, quantised, times, width
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.types import Properties, Transform

TRAFFIC = {"bits": 1.23}  # a Gaussian; real updates, whose blocks are more even, take up to 1.4


def ternary(block: int = 256) -> Transform[None]:
    """Each entry as -s, 0 or s, s the largest magnitude of its `block`, entropy-coded: 1.2 bits, and right in the mean.

    b = s sign(x) B with P(B = 1) = |x| / s (TernGrad, arXiv:1705.07878, section 3). Deviations: a scale a block, so that
    layers of different size do not drown each other; no clipping of gradients, which would bias them; and range coding
    (rANS) instead of two bits, which gains the more the larger the block, and the noisier the update. On a Gaussian the
    noise has 1.4 times the update's squared norm: many clients must average it away.

    Raises:
        ConfigError: block is below 2.

    >>> from atoll.types import Update
    >>> sent = ternary().encode(None, {}, {}, Update(0, "a", "train", {"w": torch.tensor([1.0, 0.0, -1.0])}, 1.0, {}))[0]
    >>> ternary().decode(sent, None).tree["w"].tolist()
    [1.0, 0.0, -1.0]
    """
    block = width("ternary", block)

    def encode(x: Tensor, seed: int) -> Parts:
        q, scale = quantised(x, block, 1, rng.seed(seed, "ternary"))
        return {**rans.packed(len(q), lambda at: q[at].int()), "scale": scale}

    def decode(parts: Parts, n: int) -> Tensor:
        scale = expect(parts["scale"], torch.float32, -(-n // block), "ternary scales")
        q = torch.cat([codes.clamp_(-1, 1).to(torch.int8) for _, codes in rans.unpacked(parts, n)])
        return times(q, scale, block)

    return coded("ternary/1", Coder(encode, decode), Properties(unbiased=True, entropy=True))
