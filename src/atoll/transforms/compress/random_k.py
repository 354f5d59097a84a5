"""Random-k sparsification with shared coordinates: what clients send can be summed as it is (Konecny et al. 2016,
arXiv:1610.05492, random mask).

The server draws a seed a round and broadcasts it. A tensor of n entries is cut into k = ceil(fraction n) strata of equal
size up to one entry; every client sends the same one of each, drawn uniformly. Back at the server the mean of each is
multiplied by the size of its stratum, which is 1 / fraction up to rounding: right in the mean, whatever the size.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError, TreeError
from atoll.types import Assignment, Properties, Reduced, Transform, Tree, Update

TRAFFIC = {"bits": 32, "per": "fraction"}
_MARK = "random_k/1="  # a sent tensor's name is this, its shape and its name: the sum of a table would mean nothing
_SENT = re.compile(re.escape(_MARK) + r"(?P<shape>[0-9x]*) (?P<name>.*)", re.DOTALL)


class Drawn(NamedTuple):
    """Requests so far, each of which has coordinates of its own."""

    requests: int


def random_k(fraction: float = 0.01, seed: int = 0) -> Transform[Drawn]:
    """A `fraction` of each tensor's entries, the same at random for all clients of a round: it can be summed, and is unbiased.

    Clients are sent 8 bytes, and send 4 for each entry kept. An answer that comes after its round is dropped, since it
    has other coordinates. The variance is (1 / fraction - 1) times the update's square norm.

    Raises:
        ConfigError: fraction is not above 0 and at most 1.

    >>> one = random_k(0.5)
    >>> told = one.broadcast(one.init({}))
    >>> sent = one.encode(None, told, {}, Update(0, "a", "train", {"w": torch.ones(2, 2)}, 1.0, {}))[0].tree
    >>> {name: x.tolist() for name, x in sent.items()}
    {'random_k/1=2x2 w': [1.0, 1.0]}
    >>> float(one.finish(one.init({}), Reduced(sent, ["a"], {}))[0]["w"].sum())  # two entries of four, each doubled
    4.0
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"random_k fraction = {fraction}: must be above 0 and at most 1")

    def chosen(name: str, shape: torch.Size, drawn: int) -> tuple[Tensor, Tensor]:
        return strata(shape.numel(), math.ceil(fraction * shape.numel()), rng.generator(drawn, name))

    def broadcast(state: Drawn) -> Tree:
        return {"seed": torch.tensor(rng.seed(seed, "random_k", state.requests))}

    def encode(assignment: Assignment, told: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        drawn = int(told["seed"])
        sent = {
            _spelled(name, x): x.reshape(-1)[chosen(name, x.shape, drawn)[0]] if _covered(x) else x
            for name, x in update.tree.items()
        }
        return update._replace(tree=sent), {}

    def form(like: Tree) -> Tree:
        return {_spelled(name, x): x.new_empty(math.ceil(fraction * x.numel())) if _covered(x) else x for name, x in like.items()}

    def finish(state: Drawn, reduced: Reduced) -> tuple[Tree, Drawn]:
        drawn, whole = int(broadcast(state)["seed"]), dict[str, Tensor]()
        for key, x in reduced.tree.items():
            name, shape = _read(key, x, fraction)
            whole[name] = x
            if shape is not None:
                at, size = chosen(name, shape, drawn)
                whole[name] = x.new_zeros(shape.numel()).index_put_((at,), x * size).view(shape)
        return whole, Drawn(state.requests + 1)

    properties = Properties(linear=True, unbiased=True, shared=True)
    return Transform("random_k", lambda params: Drawn(0), broadcast, encode, None, finish, properties, form)


def strata(n: int, k: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """One position in each of k strata of range(n), int64 (k,), increasing, and the sizes of the strata.

    >>> strata(4, 4, torch.Generator())
    (tensor([0, 1, 2, 3]), tensor([1, 1, 1, 1]))
    """
    ends = torch.arange(k + 1).mul_(n).div_(k, rounding_mode="floor")
    size = ends.diff()
    inside = (torch.rand(k, generator=draw, dtype=torch.float64) * size).long()
    return ends[:-1] + inside, size


def _covered(x: Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0


def _spelled(name: str, x: Tensor) -> str:
    return f"{_MARK}{'x'.join(map(str, x.shape))} {name}" if _covered(x) else name


def _read(key: str, x: Tensor, fraction: float) -> tuple[str, torch.Size | None]:
    """The name and the shape of a tensor that was sent, or its own name and None where it was sent whole."""
    found = _SENT.fullmatch(key)
    if found is None:
        return key, None
    shape = torch.Size(int(length) for length in found["shape"].split("x") if length)
    if x.shape != (math.ceil(fraction * shape.numel()),):
        raise TreeError(f"random_k was sent {tuple(x.shape)} entries of {key!r}, which are not {fraction:g} of that shape")
    return found["name"], shape
