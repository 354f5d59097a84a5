"""What crosses the network when clients are sent less than the model: fewer hidden units, or the entries of a mask."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any, NamedTuple

from atoll.errors import ConfigError
from atoll.models import shapes, sparsity
from atoll.models.shapes import Shapes

VALUE_BYTES = 4


class Model(NamedTuple):
    """A model of the catalog, by name, arguments and the shapes of its state."""

    name: str
    arguments: Mapping[str, Any]
    shapes: Shapes


class Smaller(NamedTuple):
    """Models each way a round, for one client; `at_most` where it depends on what happens."""

    down: float
    up: float
    at_most: bool


def narrow(model: Model | None, keep: float) -> Smaller:
    """With so much of each hidden layer, both ways.

    >>> narrow(Model("mlp", {"inputs": 4, "hidden": [8], "outputs": 2}, shapes.mlp(4, [8], 2)), 0.5).up
    0.5172413793103449
    """
    try:
        part = shapes.narrowed(model.name, model.arguments, keep) if model else None
    except ConfigError:
        part = None
    if model is None or part is None:
        return Smaller(1.0, 1.0, True)
    share = shapes.count(part) / shapes.count(model.shapes)
    return Smaller(share, share, False)


def sparse(work: str, model: Model | None, given: Mapping[str, Any], rounds: int, everybody: bool) -> Smaller:
    """One work of `feddst` with these parameters: "train", or "grow", which is done every so many rounds.

    `everybody` is asked in every round: then a client is sent each mask once. Else it may be sent one whenever it is asked.
    """
    density, every, exchange = given["density"], given["every"], given["exchange"]
    readjusted = rounds // every if exchange and density < 1 else 0
    if model is None:
        news = 1 / 32
        return (
            Smaller(density + news, density, True) if work == "train" else Smaller(density + news, 2 * exchange * density, True)
        )
    pruned = {name: shape for name, shape in model.shapes.items() if len(shape) > 1}
    kept = sparsity.counts(pruned, density, given["spread"])
    values = sum(kept.values()) + shapes.count(model.shapes) - shapes.count(pruned)
    bitmap = ceil(shapes.count(pruned) / 8) + VALUE_BYTES * sum(map(len, pruned.values()))
    whole = VALUE_BYTES * shapes.count(model.shapes)
    if work == "train":
        masks = 1 + (rounds - 1) // every if readjusted else 1  # one that the last round makes is sent to nobody
        news = bitmap * (masks / rounds if everybody else 1.0)
        down, up = VALUE_BYTES * (values + 1) + news, VALUE_BYTES * values
        return Smaller(down / whole, up / whole, not everybody)
    grown = sum(sparsity.exchanged(kept[name], prod(shape), exchange) for name, shape in pruned.items())
    down, up = VALUE_BYTES * values + bitmap + 2 * VALUE_BYTES * len(pruned), 2 * VALUE_BYTES * grown
    return Smaller(down / whole * readjusted / rounds, up / whole * readjusted / rounds, given.get("until") is not None)
