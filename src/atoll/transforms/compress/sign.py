"""Signs with the mean magnitude of their block (signSGD, arXiv:1802.04434; EF-signSGD, arXiv:1901.09847)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atoll.transforms.compress.blocks import AT_ONCE, chunks, expect, times, width
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.types import Transform

TRAFFIC = {"bits": 1.125}


def sign(block: int = 256) -> Transform[None]:
    """One bit an entry, its sign, and one float32 every `block` entries, their mean magnitude: a 28th of the bytes.

    C(x) = (||x||_1 / d) sign(x), the compressor of EF-signSGD (Karimireddy et al. 2019), on each block of d entries, so that
    layers of different size do not drown each other; a zero counts as positive. It is biased: on a Gaussian 36 % of the
    squared norm is lost, which error feedback sends later. No majority vote (arXiv:1802.04434): servers average.

    Raises:
        ConfigError: block is below 2.

    >>> from atoll.types import Update
    >>> sent = sign().encode(None, {}, {}, Update(0, "a", "train", {"w": torch.tensor([1.0, -2.0, 3.0])}, 1.0, {}))[0]
    >>> sent.tree["sign/1=q"].tolist(), sign().decode(sent, None).tree["w"].tolist()
    ([5], [2.0, -2.0, 2.0])
    """
    block = width("sign", block)

    def encode(x: Tensor, seed: int) -> Parts:
        scale, room = torch.empty(-(-len(x) // block)), torch.empty(min(len(x), max(AT_ONCE, block)))
        for at, rows in chunks(x, block):
            sizes = torch.abs(rows, out=room[: rows.numel()].view(rows.shape))
            sizes.mul_(1 / rows.shape[1])  # before the sum, which could otherwise be an infinity
            scale[at // block : at // block + len(rows)] = sizes.sum(1)
        bits = np.packbits(x.numpy() >= 0, bitorder="little")
        return {"q": torch.from_numpy(bits), "scale": scale}

    def decode(parts: Parts, n: int) -> Tensor:
        q = expect(parts["q"], torch.uint8, -(-n // 8), "sign bits")
        scale = expect(parts["scale"], torch.float32, -(-n // block), "sign scales")
        signs = np.unpackbits(q.numpy(), count=n, bitorder="little").view(np.int8)
        signs <<= 1
        signs -= 1
        return times(torch.from_numpy(signs), scale, block)

    return coded("sign/1", Coder(encode, decode))
