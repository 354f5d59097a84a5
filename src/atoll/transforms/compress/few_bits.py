"""A sign and one of few magnitudes for every entry, the magnitudes fitted to the update (Lloyd 1982; Max 1960).

With one bit: signs times the mean magnitude, as EF-signSGD (arXiv:1901.09847); with two, after `top_k`, the values of SparseLoCo
(arXiv:2508.15706).
"""

from __future__ import annotations

import torch
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError, TreeError
from atoll.transforms.compress import bits as packing
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.types import Transform

TRAFFIC = {"bits": 1, "per": "bits"}
_SAMPLE = 1 << 14  # entries to which the magnitudes are fitted
_FITS = 30  # of Lloyd's iterations: 2 % above the least error of a normal distribution at 2 bits, 8 % at 4


def few_bits(bits: int = 2) -> Transform[None]:
    """A sign and one of 2^(bits - 1) magnitudes an entry, each the mean of the entries that it stands for; `bits`: 1 to 4.

    Meant for entries that are of some size, such as those that `top_k` leaves: no code stands for 0.

    Raises:
        ConfigError: bits is not 1, 2, 3 or 4.

    >>> from atoll.types import Update
    >>> update = Update(0, "a", "train", {"w": torch.tensor([1.0, -1.0, 4.0, 6.0])}, 1.0, {})
    >>> sent = few_bits(2).encode(None, {}, {}, update)[0]
    >>> sent.tree["few_bits/1=magnitudes"].tolist(), few_bits(2).decode(sent, None).tree["w"].tolist()
    ([1.0, 5.0], [1.0, -1.0, 5.0, 5.0])
    """
    if bits not in (1, 2, 3, 4):
        raise ConfigError(f"few_bits bits = {bits}: must be 1, 2, 3 or 4")
    levels = 1 << bits - 1

    def encode(x: Tensor, seed: int) -> Parts:
        size = x.abs()
        which = torch.bucketize(size, _cuts(_sampled(size, seed), levels))
        count = torch.bincount(which, minlength=levels).clamp_(min=1)
        magnitudes = torch.bincount(which, weights=size.double(), minlength=levels).div_(count).float()
        codes = which.to(torch.uint8).mul_(2).add_(x < 0)
        return {"codes": packing.pack(codes, bits), "magnitudes": magnitudes}

    def decode(parts: Parts, n: int) -> Tensor:
        magnitudes = parts["magnitudes"]
        if magnitudes.shape != (levels,) or not magnitudes.is_floating_point():
            raise TreeError(f"few_bits has {levels} magnitudes of {bits} bits, not {tuple(magnitudes.shape)}")
        values = torch.stack([magnitudes.float(), -magnitudes.float()], 1).view(-1)
        return values[packing.unpack(parts["codes"], bits, n).int()]

    return coded("few_bits/1", Coder(encode, decode))


def _sampled(size: Tensor, seed: int) -> Tensor:
    if len(size) <= _SAMPLE:
        return size
    return size[torch.randint(len(size), (_SAMPLE,), generator=rng.generator(seed, "few_bits"))]


def _cuts(size: Tensor, levels: int) -> Tensor:
    """Between magnitudes, (levels - 1,): half-way between the means of the entries on either side, from equal shares on."""
    ordered = size.double().sort().values
    total = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    at = torch.arange(1, levels).mul_(len(ordered)).div_(levels, rounding_mode="floor")
    cuts = ordered[at.clamp_(max=len(ordered) - 1)]
    for _ in range(_FITS):
        ends = torch.cat([at.new_zeros(1), torch.searchsorted(ordered, cuts), at.new_tensor([len(ordered)])])
        count = ends.diff()
        means = total[ends].diff() / count.clamp(min=1)
        middle = (means[:-1] + means[1:]) / 2
        before, cuts = cuts, torch.where((count[:-1] > 0) & (count[1:] > 0), middle, cuts)
        if cuts.equal(before):
            break
    return cuts.float()
