"""8-bit floating-point numbers of 4 exponent and 3 mantissa bits in blocks (Micikevicius et al. 2022, arXiv:2209.05433)."""

from __future__ import annotations

import torch
from torch import Tensor

from atoll.transforms.compress.blocks import AT_ONCE, LEAST, bounded, chunks, expect, times, tops, width
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.types import Transform

TRAFFIC = {"bits": 8.125}
_LARGEST = 448  # of E4M3
_HALF = 256  # E4M3's bits moved into a float16 mean 2^-8 of what they meant: its exponent's bias is 15, not 7


def fp8(block: int = 256) -> Transform[None]:
    """Floating-point tensors as 8-bit floats (E4M3) and one float32 scale every `block` entries: a quarter of the bytes.

    x = scale f with scale = max |x| / 448 of the block: an error of 1/16 of each value at most, down to 2^-15 of the largest.
    On a Gaussian int8 errs 15 times less (in the square); fp8 is for blocks whose entries differ by orders of magnitude.
    A deviation from the paper's per-tensor scales: a block's entries may be of two tensors, so that small ones need none.

    Raises:
        ConfigError: block is below 2.

    >>> from atoll.types import Update
    >>> sent = fp8().encode(None, {}, {}, Update(0, "a", "train", {"w": torch.tensor([448.0, 1.0, -0.3])}, 1.0, {}))[0]
    >>> fp8().decode(sent, None).tree["w"].tolist()
    [448.0, 1.0, -0.3125]
    """
    block = width("fp8", block)

    def encode(x: Tensor, seed: int) -> Parts:
        q, scale = torch.empty(len(x), dtype=torch.float8_e4m3fn), torch.empty(-(-len(x) // block))
        room = torch.empty(min(len(x), max(AT_ONCE, block)))
        for at, rows in chunks(x, block):
            own = scale[at // block : at // block + len(rows)]
            own.copy_(tops(rows).mul_(1 / _LARGEST).clamp_(min=LEAST))
            y = torch.mul(rows, own.reciprocal().view(-1, 1), out=room[: rows.numel()].view(rows.shape))
            q[at : at + y.numel()].view(rows.shape).copy_(y)
        return {"q": q.view(torch.uint8), "scale": bounded(scale, _LARGEST)}

    def decode(parts: Parts, n: int) -> Tensor:
        q = expect(parts["q"], torch.uint8, n, "fp8 codes")
        scale = expect(parts["scale"], torch.float32, -(-n // block), "fp8 scales")
        halves = q.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)  # ten times a cast's speed
        return times(halves.view(torch.float16), scale * _HALF, block)

    return coded("fp8/1", Coder(encode, decode))
