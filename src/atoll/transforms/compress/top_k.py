"""Top-k sparsification: the largest entries by magnitude and where they are (Stich et al. 2018, arXiv:1809.07599).

Alone it forgets what it leaves out; `feedback([top_k(...)])` remembers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError, TreeError
from atoll.transforms.compress import positions
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.types import Transform

TRAFFIC = {"bits": 40.1, "per": "fraction", "beside": 8.1}  # a float32, and its position in a Rice code
_SAMPLE = 0.01  # of the entries: whose magnitudes say where the threshold lies
_MOST = 1.25  # times the fraction: above it, entries that tie or cluster have fooled the sample
_AT_ONCE = 1 << 16  # entries: a chunk and what is computed from it stay in a core's cache


def top_k(fraction: float = 0.01, threshold: Literal["sampled", "exact"] = "sampled") -> Transform[None]:
    """The `fraction` of all entries that are largest in magnitude, as float32 values and their positions.

    `threshold`: "exact" keeps ceil(fraction n) of n entries; "sampled" takes the magnitude above which so many lie in a
    sample of 1 % (more where the fraction is small), ten times as fast: about that many, 1.25 times as many at most.

    Raises:
        ConfigError: fraction is not above 0 and at most 1, or another threshold.

    >>> from atoll.types import Update
    >>> sent = top_k(0.3).encode(None, {}, {}, Update(0, "a", "train", {"w": torch.tensor([3.0, -4.0, 1.0])}, 1.0, {}))[0]
    >>> sent.tree["top_k/1=values"].tolist(), top_k(0.3).decode(sent, None).tree["w"].tolist()
    ([-4.0], [0.0, -4.0, 0.0])
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"top_k fraction = {fraction}: must be above 0 and at most 1")
    if threshold not in ("sampled", "exact"):
        raise ConfigError(f"top_k threshold = {threshold!r}: must be sampled or exact")

    def kept(x: Tensor, seed: int) -> Tensor:
        k, sample = math.ceil(fraction * len(x)), max(int(_SAMPLE * len(x)), math.ceil(400 / fraction))
        if threshold == "exact" or sample >= len(x):
            return largest(x, k)
        drawn = torch.randint(len(x), (sample,), generator=rng.generator(seed, "top_k"))
        least = x[drawn].abs_().topk(math.ceil(fraction * sample)).values[-1]
        found = _above(x, float(least))
        return found if 0 < len(found) <= max(_MOST * k, 1) else found[largest(x[found], k)] if len(found) else largest(x, k)

    return coded("top_k/1", sparse(kept))


def sparse(kept: Callable[[Tensor, int], Tensor]) -> Coder:
    """The coder that sends some entries and drops the others; `kept`: (x (n,), seed) -> positions int64, increasing."""

    def encode(x: Tensor, seed: int) -> Parts:
        at = kept(x, seed)
        return {"positions": positions.write(at, len(x)), "values": x[at]}

    def decode(parts: Parts, n: int) -> Tensor:
        values = parts["values"]
        if values.dim() != 1 or not values.is_floating_point():
            raise TreeError(f"the values of kept entries are {values.dtype} {tuple(values.shape)}; they should be one vector")
        at = positions.read(parts["positions"], len(values), n)
        return torch.zeros(n).index_put_((at,), values.float())

    return Coder(encode, decode)


def largest(x: Tensor, k: int) -> Tensor:
    """The positions of the k entries of x (n,) that are largest in magnitude, increasing; NaN is larger than any number."""
    return x.abs().topk(min(k, len(x)), sorted=False).indices.sort().values


def _above(x: Tensor, least: float) -> Tensor:
    """The positions of entries that are not below a magnitude, or that are not zero where it is 0; NaN is not below any."""
    entries, found = x.numpy(), []
    size, below = np.empty(_AT_ONCE, np.float32), np.empty(_AT_ONCE, bool)
    for at in range(0, len(entries), _AT_ONCE):  # NumPy: its positions of what is true come five times as fast as torch's
        part = entries[at : at + _AT_ONCE]
        np.abs(part, out=size[: len(part)])
        (np.less if least > 0 else np.less_equal)(size[: len(part)], least, out=below[: len(part)])
        found.append(np.flatnonzero(~below[: len(part)]) + at)
    return torch.from_numpy(np.concatenate(found))
