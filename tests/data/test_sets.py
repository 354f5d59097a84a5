"""The real data sets: published sizes and shapes, splits that do not overlap, and what they refuse."""

from __future__ import annotations

import gzip
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atoll.data.chicago import chicago
from atoll.data.clients import held_out, share, test_size
from atoll.data.credit import credit
from atoll.data.digits import digits
from atoll.data.fashion_mnist import fashion_mnist, idx
from atoll.data.heart_disease import heart_disease
from atoll.data.partition.dirichlet import dirichlet
from atoll.data.partition.feature_shift import feature_shift
from atoll.data.partition.iid import iid
from atoll.data.partition.natural import natural
from atoll.data.qa import qa
from atoll.data.rdataset import unpickled
from atoll.data.shakespeare import shakespeare
from atoll.data.sotu import sotu
from atoll.data.text import Texts
from atoll.errors import ConfigError, DataError, UnknownName
from atoll.types import Dataset, Examples


def everything(examples: Examples) -> dict[str, Tensor]:
    return dict(examples.take(torch.arange(len(examples))))


def total(dataset: Dataset) -> int:
    return sum(len(split) for splits in dataset.clients.values() for split in splits.values()) + len(dataset.test or ())


def test_digits_are_all_there_once() -> None:
    data = digits(clients=7)
    assert total(data) == 1797
    assert len(data.clients) == 7
    first = everything(data.clients[next(iter(data.clients))]["train"])
    assert first["x"].shape[1:] == (1, 8, 8)
    assert first["x"].dtype == torch.float32
    assert first["y"].dtype == torch.int64
    assert 0 <= first["x"].min() <= first["x"].max() <= 1


def test_one_seed_one_federation() -> None:
    def sizes(seed: int) -> list[Any]:
        data = digits(5, dirichlet(0.3), seed=seed)
        return [everything(splits["train"])["y"].tolist() for splits in data.clients.values()]

    assert sizes(0) == sizes(0)
    assert sizes(0) != sizes(1)


def test_more_clients_than_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2000 clients .* there are 1438"):
        digits(clients=2000)


def test_a_share_is_split_without_overlap_and_the_server_has_what_nobody_saw() -> None:
    count = 200
    data = share("toy", {"y": torch.arange(count)}, iid(), clients=4, seed=0, test_fraction=0.2, server_fraction=0.1)
    seen = [row for splits in data.clients.values() for split in splits.values() for row in everything(split)["y"].tolist()]
    assert data.test is not None
    server = everything(data.test)["y"].tolist()
    assert sorted(seen + server) == list(range(count))
    assert len(server) == 20
    assert {(len(splits["train"]), len(splits["test"])) for splits in data.clients.values()} == {(36, 9)}


def test_a_feature_shift_changes_what_clients_see_and_not_what_the_server_holds() -> None:
    columns = {"x": torch.ones(100, 4), "y": torch.zeros(100).long()}
    data = share("toy", columns, feature_shift("noise", 1.0), clients=2, seed=0, server_fraction=0.2)
    assert data.test is not None
    assert everything(data.test)["x"].eq(1).all()
    second = everything(data.clients[list(data.clients)[1]]["train"])["x"]
    assert not second.eq(1).any()


def test_numbered_clients_are_named_in_their_order() -> None:
    names = list(share("toy", {"y": torch.zeros(30)}, iid(), clients=12, seed=0).clients)
    assert names == sorted(names)
    assert names[0] == "client-00"


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="test_fraction is"):
        test_size(10, fraction)


def test_a_client_with_one_example_trains_on_it() -> None:
    train, test = held_out(1, 0.5, 0)
    assert (train.tolist(), test.tolist()) == ([0], [])


@pytest.mark.fetch
def test_fashion_mnist_is_the_published_one() -> None:
    data = fashion_mnist(clients=3, limit=600)
    assert data.test is not None
    assert len(data.test) == 100
    assert sum(len(split) for splits in data.clients.values() for split in splits.values()) == 600
    assert data.test.take(torch.arange(5))["y"].tolist() == [9, 2, 1, 1, 6]  # the first five test labels, as published
    whole = fashion_mnist(clients=10)
    x = torch.cat([everything(splits["train"])["x"] for splits in list(whole.clients.values())[:2]])
    assert x.shape[1:] == (1, 28, 28)
    assert abs(x.mean().item()) < 0.02
    assert x.std().item() == pytest.approx(1, abs=0.02)
    assert total(whole) == 70_000
    with pytest.raises(ConfigError, match="limit is 0, but must be from 1 to 60000"):
        fashion_mnist(limit=0)


def test_idx_reads_its_format_and_names_a_file_that_is_not(tmp_path: Path) -> None:
    header = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big")
    good = tmp_path / "good.gz"
    good.write_bytes(gzip.compress(header + bytes(range(6))))
    assert idx(good).tolist() == [[0, 1, 2], [3, 4, 5]]
    for content in (gzip.compress(header + b"12345"), gzip.compress(b""), gzip.compress(b"\x00\x00\x0d\x01"), b"no gzip", b""):
        bad = tmp_path / "bad.gz"
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.gz"):
            idx(bad)


@pytest.mark.fetch
def test_heart_disease_is_four_hospitals_with_their_published_rates() -> None:
    data = heart_disease(test_fraction=0.0)
    assert list(data.clients) == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]
    assert total(data) == 920
    rates = {str(name): everything(splits["train"])["y"].float().mean().item() for name, splits in data.clients.items()}
    assert rates["Hungary"] == pytest.approx(0.362, abs=0.02)
    assert rates["Switzerland"] == pytest.approx(0.935, abs=0.02)
    x = everything(data.clients[next(iter(data.clients))]["train"])["x"]
    assert x.shape[1] == len(data.about["features"]) == 30
    assert x.isfinite().all()
    missing = data.about["features"].index("chol missing")
    swiss = everything(data.clients[list(data.clients)[2]]["train"])["x"]
    assert swiss[:, missing].eq(1).all()  # all Swiss cholesterol values are 0, that is, missing
    assert list(heart_disease(clients=2).clients) == ["Cleveland", "Hungary"]
    with pytest.raises(ConfigError, match="clients is 5, but the column 'hospital' has 4"):
        heart_disease(clients=5)
    mixed = heart_disease(clients=6, partition=iid())
    assert next(iter(mixed.clients)) == "client-0"


@pytest.mark.fetch
def test_credit_is_fifty_states() -> None:
    data = credit(clients=None)
    assert len(data.clients) == 50
    assert total(data) == 9857
    labels = [everything(split)["y"] for splits in data.clients.values() for split in splits.values()]
    assert data.test is not None
    assert int(torch.cat([*labels, everything(data.test)["y"]]).sum()) == 517
    assert everything(data.test)["x"].isfinite().all()
    assert everything(data.test)["x"].shape[1] == 25
    largest = credit(clients=3)
    assert list(largest.clients) == ["CA", "NY", "TX"]


@pytest.mark.fetch
def test_chicago_windows_go_on_where_the_past_ends() -> None:
    data = chicago(clients=4, window=14, horizon=7)
    assert len(data.clients) == 4
    train, test = (everything(next(iter(data.clients.values()))[split]) for split in ("train", "test"))
    assert train["x"].shape[1:] == (14, 6)
    assert train["y"].shape[1:] == (7,)
    # Seven windows later the rides that were to be forecast are the last half of the past
    assert torch.equal(train["x"][7, 7:, 0], train["y"][0])
    assert len(train["y"]) == 5698 - 2 * 570 - 20
    assert len(test["y"]) == 570 - 20
    assert data.test is not None
    assert len(data.test) == 4 * len(test["y"])
    assert train["x"][:, :, 0].mean().item() == pytest.approx(1, abs=0.01)  # over the station's own mean
    with pytest.raises(ConfigError, match="there are 20 stations"):
        chicago(clients=21)
    with pytest.raises(ConfigError, match="a window of 600 and a horizon of 7 days need 607 days"):
        chicago(window=600)


@pytest.mark.fetch
def test_shakespeare_is_the_speakers_who_say_most() -> None:
    data = shakespeare(clients=3)
    assert list(data.clients) == ["HAMLET (Hamlet)", "IAGO (Othello)", "KING HENRY (King Henry V)"]
    hamlet = data.clients[next(iter(data.clients))]
    train, test = hamlet["train"], hamlet["test"]
    assert isinstance(train, Texts)
    assert isinstance(test, Texts)
    assert train.text[0] == "A little more than kin, and less than kind!"
    assert test.text[-1].endswith("the rest is silence.")
    assert any("To be, or not to be" in text for text in train.text)
    assert isinstance(data.test, Texts)
    assert not set(data.test.text) & {text for text in train.text if len(text) > 40}
    with pytest.raises(UnknownName, match=r"did you mean 'MACBETH \(Macbeth\)'"):
        shakespeare(speakers=["MACBET (Macbeth)"])
    with pytest.raises(ConfigError, match="clients is 5000, but 359 speakers say 500 words or more"):
        shakespeare(clients=5000)
    assert list(shakespeare(speakers=["JULIET (Romeo and Juliet)"]).clients) == ["JULIET (Romeo and Juliet)"]


@pytest.mark.fetch
def test_sotu_is_every_president_in_order() -> None:
    data = sotu()
    names = list(data.clients)
    assert (len(names), names[0], names[-1]) == (43, "George Washington", "Joseph R Biden")
    with pytest.raises(ConfigError, match="there are 43 presidents"):
        sotu(clients=44)
    with pytest.raises(UnknownName, match="did you mean 'Abraham Lincoln'"):
        sotu(presidents=["Abraham Lincon"])
    with pytest.raises(ConfigError, match="passage_words is 0"):
        sotu(passage_words=0)


@pytest.mark.fetch
def test_qa_keeps_the_answers_to_a_question_together() -> None:
    data = qa()
    assert len(data.clients) == 19
    for splits in data.clients.values():
        train, test = splits["train"], splits["test"]
        assert isinstance(train, Texts)
        assert isinstance(test, Texts)
        assert not set(train.text) & set(test.text)
        assert train.target is not None
    assert isinstance(data.test, Texts)
    assert data.test.target is not None
    with pytest.raises(ConfigError, match="clients is 20, but 19 topics"):
        qa(clients=20)


def test_a_pickle_that_is_no_table_is_not_run() -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return eval, ("1/0",)

    with pytest.raises(DataError, match=r"asks for builtins\.eval, which no table needs"):
        unpickled(lzma.compress(pickle.dumps(Evil())))
    with pytest.raises(DataError, match="cannot be read"):
        unpickled(b"not compressed")
    with pytest.raises(DataError, match="cannot be read"):
        unpickled(lzma.compress(b""))


def test_natural_clients_need_what_they_are_named_by() -> None:
    with pytest.raises(ConfigError, match="reads a column 'hospital'"):
        share("toy", {"y": torch.zeros(3)}, natural("hospital"), clients=None, seed=0)
