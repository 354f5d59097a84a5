"""What a region is asked and how it speaks: pure functions, before any network."""

from __future__ import annotations

import pytest
import torch

from atoll.deploy.regions.region import asked, onward, read_region, refuse, spoken
from atoll.errors import ConfigError, JobError, TreeError
from atoll.fold import Fold
from atoll.policy import Policy
from atoll.transforms.chain import chain
from atoll.transforms.clip import clip
from atoll.transforms.compress.feedback import feedback
from atoll.transforms.compress.random_k import random_k
from atoll.transforms.compress.top_k import top_k
from atoll.transforms.regions import CLIENTS, MARK, UNIFORM
from atoll.types import Assignment, ClientId, Reduced, Transform, Update

A, B, NORTH = ClientId("a"), ClientId("b"), ClientId("north")
SITES = "[sites]\nharbour = ['a']\nisland = ['b', 'c']\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SITES, "region.toml:1: region is missing: write `region = 1` first"),
        ("region = 2\n" + SITES, "region = 2: must be 1"),
        ("region = 1\nmin_updates = 0\n" + SITES, "region.toml:2: min_updates = 0: must be 1 or more"),
        ("region = 1\nmin_update = 3\n" + SITES, "region.toml:2: there is no key 'min_update'; did you mean 'min_updates'"),
        ("region = 1\nmin_updates = 4\n" + SITES, "has 3 clients, and min_updates is 4"),
        ("region = 1\n[sites]\nx = ['a']", "a mean of fewer hides nobody"),
        ("region = 1\n[sites]\nx = ['a', 'b']\ny = ['a']", "gives 'a' to 'x' and to 'y'"),
    ],
)
def test_a_region_file_is_judged(text: str, says: str) -> None:
    with pytest.raises(JobError, match=says):
        read_region(text)


def test_who_runs_a_relay_may_lower_the_least_number() -> None:
    assert read_region("region = 1\nmin_updates = 1\n[sites]\nx = ['a']").policy.min_updates == 1


W = {"w": torch.tensor([0.0, 0.0, 0.0, 0.0]), "b": torch.tensor([0.0, 0.0])}
UPDATES = {
    A: Update(0, A, "train", {"w": torch.tensor([4.0, 1.0, 0.0, -2.0]), "b": torch.tensor([1.0, 8.0])}, 1.0, {"loss": 2.0}),
    B: Update(0, B, "train", {"w": torch.tensor([0.0, 5.0, 2.0, -2.0]), "b": torch.tensor([5.0, 0.0])}, 3.0, {"loss": 6.0}),
}
MEAN = {"w": [1.0, 4.0, 1.5, -2.0], "b": [4.0, 2.0]}  # (1 A + 3 B) / 4


def assignment(links: list[Transform[object]] | None = None, uniform: bool = False, work: str = "train") -> Assignment:
    told = {f"~{link.name}/{name}": x for link in links or [] for name, x in link.broadcast(link.init(W)).items()}
    return Assignment(0, NORTH, work, {**W, **told, MARK + UNIFORM: torch.tensor(uniform)}, 7)


def heard(given: Assignment, links: list[Transform[object]]) -> Reduced:
    """The answers of A and B, encoded at each and folded at the relay."""
    request = asked(given, [A, B], links, W)
    fold = Fold(request, Policy(), 0, in_order=False)
    for client, plain in UPDATES.items():
        sent = plain
        for link in links:
            told = {name.removeprefix(f"~{link.name}/"): x for name, x in request.tree_for(client).items()}
            sent, _ = link.encode(given._replace(client=client), told, {}, sent)
        assert fold.judge(sent) == sent
        fold.hear(sent, lambda held: lambda: held)
    return fold.finish()


def test_a_region_speaks_as_one_client_of_the_summed_weight() -> None:
    given = assignment()
    found, memory = spoken(given, heard(given, []), [], {})
    assert {name: x.tolist() for name, x in found.tree.items()} == MEAN
    assert found._replace(tree={}) == Update(0, NORTH, "train", {}, 4.0, {"loss": 5.0, CLIENTS: 2.0})
    assert memory == {}


def test_what_it_is_asked_goes_on_as_it_is_but_for_its_mark() -> None:
    request = asked(assignment(uniform=True), [A, B], [], W)
    assert request.tree_for(A).keys() == W.keys()
    assert request.tree_for(A) is request.tree_for(B)  # written once for all
    assert request.reduce.weights == "uniform"


def test_a_coordinator_that_does_not_know_of_the_region_gets_no_mean() -> None:
    given = assignment()
    with pytest.raises(TreeError, match="takes 'north' for one client"):
        asked(given._replace(tree=W), [A, B], [], W)


def test_what_the_regions_own_encoder_leaves_out_is_owed_by_the_region() -> None:
    links = [feedback([top_k(0.5)], "always")]
    given = assignment(links)  # type: ignore[arg-type]
    reduced = heard(given, links)  # type: ignore[arg-type]
    found, memory = spoken(given, reduced, links, {})
    codec = chain("region", links)
    assert codec.decode is not None
    sent = codec.decode(found, W).tree
    owed = {name.removeprefix("~feedback/residual/"): x for name, x in memory.items() if "residual" in name}
    assert owed, "half of the entries were left out"
    for name, x in reduced.tree.items():
        assert torch.equal(sent[name] + owed.get(name, torch.zeros_like(x)), x)
    again, _ = spoken(given._replace(round=1), reduced._replace(tree={k: 0 * x for k, x in reduced.tree.items()}), links, memory)
    for name, x in codec.decode(again, W).tree.items():
        assert torch.equal(x, owed.get(name, torch.zeros_like(x)))  # what was owed is sent


def test_codes_that_are_summed_above_are_averaged_as_they_are() -> None:
    links = [clip(100.0), random_k(0.5)]
    given = assignment(links)  # type: ignore[arg-type]
    reduced = heard(given, links)  # type: ignore[arg-type]
    found, _ = spoken(given, reduced, links, {})
    assert onward(links) == []
    whole, _ = links[1].finish(links[1].init(W), reduced._replace(tree=found.tree))
    flat = Update(0, NORTH, "train", {name: torch.tensor(x) for name, x in MEAN.items()}, 4.0, {})
    told = {name.removeprefix("~random_k/"): x for name, x in given.tree.items()}
    once, _ = links[1].finish(links[1].init(W), reduced._replace(tree=links[1].encode(given, told, {}, flat)[0].tree))
    assert all(torch.equal(whole[name], once[name]) for name in W)


def test_only_training_is_encoded() -> None:
    given = assignment(work="evaluate")
    request = asked(given, [A, B], [top_k(0.5)], None)
    assert request.decode is None
    found, memory = spoken(given, Reduced({}, [A, B], {"loss": 1.0}, (), 2, 9.0), [top_k(0.5)], {})
    assert (dict(found.tree), memory, found.weight) == ({}, {}, 9.0)


def test_a_transform_that_is_half_undone_of_sums_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't encode a mean by 'both' anew"):
        refuse([chain("both", [random_k(0.5), top_k(0.5)])])
