"""8-bit integers in blocks, each with a scale of its own: x = scale q, scale = max |x| / 127 of its block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError, TreeError
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.types import Properties, Transform

TRAFFIC = {"bits": 8.125}
_LEVELS = 127
_AT_ONCE = 1 << 16  # entries: a chunk and what is computed from it stay in a core's cache


def int8(block: int = 256, rounding: Literal["nearest", "stochastic"] = "nearest") -> Transform[None]:
    """Floating-point tensors as 8-bit integers and one float32 scale every `block` entries: a quarter of the bytes.

    `rounding`: "nearest" errs by half a step at most; "stochastic" by a whole one, and its mean is the value itself.

    Raises:
        ConfigError: block is below 2, or another rounding.

    >>> from atoll.types import Update
    >>> sent = int8().encode(None, {}, {}, Update(0, "a", "train", {"w": torch.tensor([1.0, -0.5])}, 1.0, {}))[0]
    >>> sent.tree["int8/1=q"].tolist(), int8().decode(sent, None).tree["w"].tolist()
    ([127, -64], [1.0, -0.5039370059967041])
    """
    if block < 2:
        raise ConfigError(f"int8 block = {block}: must be 2 or more entries to a scale")
    if rounding not in ("nearest", "stochastic"):
        raise ConfigError(f"int8 rounding = {rounding!r}: must be nearest or stochastic")

    def encode(x: Tensor, seed: int) -> Parts:
        draw = rng.generator(seed, "int8") if rounding == "stochastic" else None
        q, scale = torch.empty(len(x), dtype=torch.int8), torch.empty(-(-len(x) // block))
        step = max(_AT_ONCE // block, 1) * block
        for at in range(0, len(x), step):
            rows = _rows(x[at : at + step], block)
            scales = rows.abs().amax(1, keepdim=True).div_(_LEVELS)
            scale[at // block : at // block + len(rows)] = scales[:, 0]
            scaled = rows / torch.where(scales > 0, scales, 1.0)
            scaled = scaled.round_() if draw is None else scaled.add_(torch.rand(rows.shape, generator=draw)).floor_()
            q[at : at + step] = scaled.clamp_(-_LEVELS, _LEVELS).reshape(-1)[: len(x) - at]
        return {"q": q, "scale": scale}

    def decode(parts: Parts, n: int) -> Tensor:
        q, scale = parts["q"], parts["scale"]
        if q.dtype != torch.int8 or q.shape != (n,) or scale.shape != (-(-n // block),):
            raise TreeError(f"int8 codes of {tuple(q.shape)} and scales of {tuple(scale.shape)} are not those of {n} entries")
        x = q.float()
        whole = n // block * block
        x[:whole].view(-1, block).mul_(scale[: n // block].view(-1, 1))
        x[whole:].mul_(scale[n // block :])
        return x

    return coded("int8/1", Coder(encode, decode), Properties(unbiased=rounding == "stochastic"))


def _rows(x: Tensor, block: int) -> Tensor:
    """(n,) as (ceil(n / block), block), zeros at the end."""
    lacking = -len(x) % block
    return torch.nn.functional.pad(x, (0, lacking)).view(-1, block)
