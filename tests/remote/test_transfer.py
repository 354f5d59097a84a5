"""Bytes between machines: cut, damaged, resumed, shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atoll.remote.values import CHUNK_BYTES, Acknowledged, Offered, Place
from atoll.types import ClientId, Failure, Update
from atoll.wire import frame
from tests.remote.ends import (
    JOB,
    NORTH,
    QUICK,
    SOUTH,
    Proxy,
    answer_of,
    ask_for,
    hub_at,
    link_to,
    offered,
    reply,
    settled,
    tree_of,
    until,
)  # fmt: skip

MODEL = 5 * CHUNK_BYTES // 4 + 1234  # float32: five chunks, and a bit


def test_a_model_goes_there_and_an_update_back_bit_for_bit(tmp_path: Path) -> None:
    tree = {"w": torch.tensor([1.0, float("nan"), -0.0]), "n": torch.tensor(7), "e": torch.zeros(0, dtype=torch.bfloat16)}
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "site") as link:
        hub.open(JOB, {NORTH: "north"}, b"brief")
        hub.offer(JOB, [ask_for(tree)])
        got = offered(link)
        assert (got.round, got.client, got.work, got.seed) == (0, NORTH, "train", 7)
        assert b"".join(frame.write(got)) == b"".join(frame.write(ask_for(tree)))
        link.answer(JOB, reply(got))
        back = answer_of(hub)
        assert b"".join(frame.write(back)) == b"".join(frame.write(reply(ask_for(tree))))
        assert isinstance(back, Update)
        hub.acknowledge(JOB, back)
        assert settled(link) == [Acknowledged(JOB, Place(0, NORTH, "train"))]
        until(lambda: not any(path.is_file() for path in (tmp_path / "hub" / "trees").iterdir()), "the tree stays on the disk")
        assert not list(hub.answers(JOB, 0.0))


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_transfer_that_is_cut_again_and_again_repeats_a_chunk_a_cut_at_most(tmp_path: Path, way: str) -> None:
    with hub_at(tmp_path / "hub") as hub:
        proxy = Proxy(hub.address, way, CHUNK_BYTES * 7 // 4)
        with link_to(proxy.address, tmp_path / "site") as link:
            hub.open(JOB, {NORTH: "north"})
            assignment = ask_for(tree_of(MODEL if way == "down" else 10))
            hub.offer(JOB, [assignment])
            got = offered(link)
            sent = reply(got) if way == "down" else reply(got, tree=tree_of(MODEL))
            link.answer(JOB, sent)
            back = answer_of(hub)
            large = got if way == "down" else back
            assert torch.equal(large.tree["w"], tree_of(MODEL)["w"])  # type: ignore[union-attr]
        size = frame.size(large).total
        assert proxy.cuts >= 3
        assert proxy.carried[way] <= size + proxy.cuts * CHUNK_BYTES * 9 // 8
        proxy.close()


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_damaged_chunk_is_refused_and_sent_again(tmp_path: Path, way: str) -> None:
    with hub_at(tmp_path / "hub") as hub:
        proxy = Proxy(hub.address, way, flip_at=CHUNK_BYTES * 3 // 2)
        with link_to(proxy.address, tmp_path / "site") as link:
            hub.open(JOB, {NORTH: "north"})
            hub.offer(JOB, [ask_for(tree_of(MODEL))])
            got = offered(link)
            assert torch.equal(got.tree["w"], tree_of(MODEL)["w"])
            link.answer(JOB, reply(got))
            back = answer_of(hub)
            assert isinstance(back, Update)
            assert torch.equal(back.tree["w"], tree_of(MODEL)["w"])
        assert proxy.carried[way] > frame.size(got).total  # something was sent again
        proxy.close()


def test_a_site_that_begins_anew_goes_on_where_it_was(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree_of(MODEL))])
        cut = Proxy(hub.address, "down", 3 * CHUNK_BYTES)
        with link_to(cut.address, tmp_path / "site", limits=QUICK._replace(retry_s=60.0)) as link:
            next(iter(link.events(30.0)))
            link.consent(JOB, True)
            until(lambda: cut.cuts, "the line was never cut")
        cut.close()
        line = Proxy(hub.address)
        with link_to(line.address, tmp_path / "site") as link:
            got = offered(link)
            assert torch.equal(got.tree["w"], tree_of(MODEL)["w"])
            assert line.carried["down"] < frame.size(got).total - CHUNK_BYTES  # not from the beginning
        line.close()


def test_a_coordinator_that_begins_anew_takes_the_rest_of_an_answer(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree_of(10))])
        cut = Proxy(hub.address, "up", 3 * CHUNK_BYTES)
        with link_to(cut.address, tmp_path / "site", limits=QUICK._replace(retry_s=60.0)) as link:
            link.answer(JOB, reply(offered(link), tree=tree_of(MODEL)))
            until(lambda: cut.cuts, "the line was never cut")
        cut.close()
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        line = Proxy(hub.address)
        with link_to(line.address, tmp_path / "site") as link:
            assert link.outbox() == {(JOB, Place(0, NORTH, "train"))}
            hub.offer(JOB, [ask_for(tree_of(10))])
            for each in link.events(30.0):  # the same question is not put to it again
                assert not isinstance(each, Offered)
                link.consent(JOB, True)
                break
            back = answer_of(hub)
            assert isinstance(back, Update)
            assert torch.equal(back.tree["w"], tree_of(MODEL)["w"])
            assert line.carried["up"] < frame.size(back).total - CHUNK_BYTES
        line.close()


def test_sites_that_are_sent_one_tree_read_one_file(tmp_path: Path) -> None:
    tree = tree_of(1000)
    with (
        hub_at(tmp_path / "hub") as hub,
        link_to(hub.address, tmp_path / "north", "north") as north,
        link_to(hub.address, tmp_path / "south", "south") as south,
    ):
        hub.open(JOB, {NORTH: "north", SOUTH: "south"})
        hub.offer(JOB, [ask_for(tree, NORTH), ask_for(tree, SOUTH)])
        hub.offer(JOB, [ask_for(dict(tree), NORTH)._replace(work="evaluate", seed=9)])  # equal, and not the same
        assert len([path for path in (tmp_path / "hub" / "trees").iterdir() if path.is_file()]) == 1
        for link in (north, south):
            assert torch.equal(offered(link).tree["w"], tree["w"])


def test_two_clients_of_one_site_cost_one_transfer(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        line = Proxy(hub.address)
        with link_to(line.address, tmp_path / "site") as link:
            hub.open(JOB, {NORTH: "north", SOUTH: "north"})
            tree = tree_of(MODEL)
            hub.offer(JOB, [ask_for(tree, NORTH), ask_for(tree, SOUTH)])
            assert {offered(link).client, offered(link).client} == {NORTH, SOUTH}
        assert line.carried["down"] < 1.1 * 4 * MODEL
        line.close()


def test_a_tree_larger_than_a_site_takes_is_a_failure_that_says_so(tmp_path: Path) -> None:
    little = QUICK._replace(blob_bytes=1000)
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "site", limits=little) as link:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree_of(1000))])
        next(iter(link.events(30.0)))
        link.consent(JOB, True)
        failure = answer_of(hub)
        assert isinstance(failure, Failure)
        assert "1000 are taken here" in failure.reason


def test_a_full_disk_at_a_site_is_told_and_passes(tmp_path: Path) -> None:
    full = QUICK._replace(free_bytes=1 << 60)
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree_of(1000))])
        with link_to(hub.address, tmp_path / "site", limits=full) as link:
            next(iter(link.events(30.0)))
            link.consent(JOB, True)
            until(lambda: "has no room" in hub.progress(JOB)[NORTH].text, "the coordinator was not told")
            assert not list((tmp_path / "site" / "trees").glob("[0-9a-f]" * 64))
        with link_to(hub.address, tmp_path / "site") as link:
            assert torch.equal(offered(link).tree["w"], tree_of(1000)["w"])


def test_thirty_two_sites_answer_and_nothing_is_lost(tmp_path: Path) -> None:
    names = [f"site{i:02}" for i in range(32)]
    tree = tree_of(100)
    links = []
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {ClientId(name): name for name in names})
        try:
            for name in names:
                links.append(link_to(hub.address, tmp_path / name, name))
            opened = [each.__enter__() for each in links]
            hub.offer(JOB, [ask_for(tree, ClientId(name)) for name in names])
            for link in opened:
                got = offered(link)
                link.answer(JOB, reply(got, tree={"w": got.tree["w"] + names.index(got.client)}))
            seen = {}
            for answer in hub.answers(JOB, 30.0):
                assert isinstance(answer, Update)
                seen[answer.client] = answer.tree["w"]
                hub.acknowledge(JOB, answer)
            assert seen.keys() == set(names)
            assert all(torch.equal(x, tree["w"] + names.index(name)) for name, x in seen.items())
            for link in opened:
                assert [type(each) for each in settled(link)] == [Acknowledged]
        finally:
            for each in links:
                each.__exit__(None, None, None)
