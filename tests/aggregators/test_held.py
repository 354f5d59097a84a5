"""aggregators/held.py: each coordinate's mean over who held it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atoll import tree
from atoll.aggregators.held import Placed, held
from atoll.aggregators.mean import mean
from atoll.errors import ConfigError
from atoll.testing.aggregator import check_aggregator, updates
from atoll.testing.store import same_bits
from atoll.types import ClientId, Update


def part(update: Update) -> dict[str, Tensor]:
    """What a client holds: some of the columns of w, everything else; nobody holds the last column."""
    k = int(update.client[1:])
    columns = torch.tensor([1.0, float(k % 2), float(k % 3 == 0), 0.0])
    return {**{name: torch.ones(()) for name in ("b", "empty", "half")}, "w": columns}


def placed(update: Update) -> Placed:
    mask = part(update)
    return Placed({name: x * mask[name].to(x.dtype) for name, x in update.tree.items()}, mask)


@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_laws(weights: str) -> None:
    check_aggregator(held(placed, weights))  # type: ignore[arg-type]


def test_holding_everything_gives_the_bits_of_mean() -> None:
    for pack in (dict, tree.pack):
        sent = [u._replace(tree=pack({"w": u.tree["w"]}), weight=float(3 * k + 1)) for k, u in enumerate(updates())]
        ours, theirs = held(lambda u: Placed(u.tree, {"w": torch.ones(3, 1)})), mean()
        a, b = ours.init(), theirs.init()
        for update in sent:
            a, b = ours.add(a, update), theirs.add(b, update)
        assert same_bits(dict(ours.finish(a)), dict(theirs.finish(b)))


def test_by_hand() -> None:
    rule = held(lambda u: Placed({"w": u.tree["w"]}, {"w": u.tree["held"]}))
    acc = rule.init()
    for client, w, there, weight, factor in (
        ("a", [6.0, 6.0, 0.0], [1.0, 1.0, 0.0], 1.0, 1.0),
        ("b", [0.0, 3.0, 0.0], [0.0, 1.0, 0.0], 3.0, 0.5),
    ):
        sent = {"w": torch.tensor(w), "held": torch.tensor(there)}
        acc = rule.add(acc, Update(0, ClientId(client), "train", sent, weight, {}, factor=factor))
    # 6 alone; (1 * 6 + 3 * .5 * 3) / (1 + 3); nobody
    assert rule.finish(acc)["w"].tolist() == [6.0, 2.625, 0.0]
    assert rule.finish(rule.init()) == {}
    with pytest.raises(ConfigError, match="must be 'examples' or 'uniform'"):
        held(placed, "loss")  # type: ignore[arg-type]
