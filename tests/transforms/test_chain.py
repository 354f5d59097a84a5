"""A chain of links is what a pipe of them is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atoll.algorithms.fedavg import fedavg
from atoll.errors import ConfigError
from atoll.local.sgd import sgd
from atoll.store.memories import Kept
from atoll.testing.store import same_bits
from atoll.testing.transform import check_transform
from atoll.transforms.chain import chain
from atoll.transforms.clip import clip
from atoll.transforms.compress.cast import cast
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.random_k import random_k
from atoll.transforms.compress.top_k import top_k
from atoll.transforms.pipe import links_of, pipe
from atoll.types import ClientId, Reduced, Transform, Tree, Update
from tests.core.small import TWO, Log, holding, line, states, weights
from tests.transforms.test_transforms import counting

CHAINS: dict[str, list[Transform[Any]]] = {
    "nothing": [],
    "bounded": [clip(0.5), cast("bf16")],
    "coded": [clip(0.5), top_k(0.5), int8()],
    "summed": [random_k(0.5), cast("bf16")],
    "summed and coded": [random_k(0.5), int8()],
    "stateful": [counting("one"), counting("two")],
}


@pytest.mark.parametrize("links", CHAINS.values(), ids=CHAINS)
def test_it_is_the_pipe_of_its_links(links: list[Transform[Any]]) -> None:
    task = line()
    algorithm = fedavg(sgd(task, lr=0.5))
    one = weights(pipe(algorithm, chain("all", links)), holding(**TWO), 3, task)
    assert one == weights(pipe(algorithm, *links), holding(**TWO), 3, task)


@pytest.mark.parametrize("links", CHAINS.values(), ids=CHAINS)
def test_it_obeys_the_laws_of_what_it_promises(links: list[Transform[Any]]) -> None:
    check_transform(chain("all", links), tolerance=2**-6)


def test_each_link_has_its_own_corner_within_that_of_the_chain() -> None:
    memories, log = Kept(), Log()
    algorithm = pipe(fedavg(sgd(line())), chain("all", [counting("one"), counting("two")]))
    *_, last = states(algorithm, holding(**TWO), 3, line(), log=log, memories=memories)
    assert sorted(memories.get(ClientId("a"))) == ["~all/one/count", "~all/two/count"]
    assert last.algorithm[1] == (3, 3)


def test_the_last_link_is_undone_first() -> None:
    def adding(name: str, text: float) -> Transform[None]:
        def encode(a: Any, told: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
            return update._replace(tree={n: x * 2 + text for n, x in update.tree.items()}), {}

        def decode(update: Update, like: Tree | None) -> Update:
            return update._replace(tree={n: (x - text) / 2 for n, x in update.tree.items()})

        return Transform(name, lambda w: None, lambda s: {}, encode, decode, lambda s, r: (r.tree, s))

    both = chain("both", [adding("a", 1.0), adding("b", 3.0)])
    given = Update(0, ClientId("a"), "train", {"w": torch.tensor([5.0])}, 1.0, {})
    sent, _ = both.encode(None, {}, {}, given)  # type: ignore[arg-type]
    assert sent.tree["w"].tolist() == [25.0]  # (5 2 + 1) 2 + 3
    assert both.decode is not None
    assert same_bits(dict(both.decode(sent, None).tree), dict(given.tree))
    assert both.finish(both.init({}), Reduced({"w": torch.ones(1)}, [], {}))[1] == (None, None)


def test_the_rules_of_composition_look_inside() -> None:
    assert [link.name for link in links_of([chain("all", [clip(1.0), chain("in", [top_k(0.1)])]), int8()])] == [
        "clip",
        "top_k",
        "int8",
    ]
    with pytest.raises(ConfigError, match="put 'clip' first"):
        pipe(fedavg(sgd(line())), chain("all", [top_k(0.1)]), clip(1.0))
    assert chain("all", [cast("bf16"), random_k(0.1)]).properties.linear
    assert not chain("all", [cast("bf16"), int8()]).properties.linear
    assert chain("all", [clip(1.0), clip(2.0)]).properties.bounds_norm
