"""Who holds what, counted and drawn."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from atoll.data.clients import share
from atoll.data.examples import Tensors
from atoll.data.partition.dirichlet import dirichlet
from atoll.data.partition.quantity_skew import power_law
from atoll.data.show import Holding, holdings, plot, table
from atoll.data.text import Texts
from atoll.errors import DataError
from atoll.types import ClientId, Dataset


def labelled(clients: int, classes: int = 3, count: int = 600) -> Dataset:
    columns = {"x": torch.zeros(count, 2), "y": torch.arange(count) % classes}
    about = {"labels": [f"class {number}" for number in range(classes)]}
    return share("toy", columns, dirichlet(0.5), clients=clients, seed=0, server_fraction=0.1, about=about)


def texts_of(svg: Path) -> str:
    return " ".join(element.text or "" for element in ElementTree.parse(svg).iter())


def test_counts_are_those_of_the_examples() -> None:
    data = labelled(5)
    rows = holdings(data)
    assert sum(row.train + row.test for row in rows) + len(data.test or ()) == 600
    assert all(sum(row.labels.values()) == row.train for row in rows)
    assert {name for row in rows for name in row.labels} == {"class 0", "class 1", "class 2"}


def test_what_has_no_classes_has_no_histogram() -> None:
    forecast = Dataset("f", {ClientId("a"): {"train": Tensors({"x": torch.zeros(4, 2), "y": torch.zeros(4, 7)})}}, None)
    assert holdings(forecast) == [Holding("a", 4, 0, {})]
    texts = Dataset("t", {ClientId("a"): {"train": Texts(["x", "y"], labels=[1, 1]), "test": Texts(["z"])}}, None)
    assert holdings(texts) == [Holding("a", 2, 1, {"1": 2})]
    assert table(texts).splitlines()[1] == "a           2     1  1 2"
    assert "labels" not in table(forecast)


def test_an_empty_client_is_shown_as_empty() -> None:
    none = Tensors({"y": torch.zeros(0, dtype=torch.int64)})
    data = Dataset("toy", {ClientId("a"): {"train": none}, ClientId("b"): {}}, None)
    assert [row[1:3] for row in holdings(data)] == [(0, 0), (0, 0)]
    assert plot(data, "empty.png").stat().st_size > 0


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_suffix_gives_the_form(suffix: str) -> None:
    path = plot(labelled(4), f"who.{suffix}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)


def test_the_picture_names_clients_labels_and_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")  # text as text
    shown = texts_of(plot(labelled(4), "few.svg"))
    assert all(word in shown for word in ("client-0", "client-3", "class 2", "toy: 4 clients", "held out by the server"))
    columns = {"x": torch.zeros(3000, 1), "y": torch.arange(3000).float()}
    many = share("many", columns, power_law(1.0), clients=90, seed=0, test_fraction=0.0)
    shown = texts_of(plot(many, "many.svg"))
    smallest = sorted(len(splits["train"]) for splits in many.clients.values())[:50]
    assert f"the 40 largest; the other 50 hold {sum(smallest):,}" in shown
    assert "client-39" in shown
    assert "client-40" not in shown


def test_bars_are_as_long_as_the_counts() -> None:
    data = Dataset(
        "toy", {ClientId(c): {"train": Tensors({"y": torch.zeros(n).long()})} for c, n in (("a", 10), ("b", 40))}, None
    )
    with Image.open(plot(data, "bars.png")) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    blue = (pixels == torch.tensor([31, 119, 180])).all(dim=2)  # the first colour of tab10
    start = int(blue.any(dim=0).int().argmax())
    lengths = blue[:, start:].long().cumprod(dim=1).sum(dim=1)  # of the run that starts at the axis, not the legend's patch
    assert lengths.max() / lengths[lengths > 0].min() == pytest.approx(4, rel=0.03)


def test_an_unwritable_place_or_form_is_named() -> None:
    with pytest.raises(DataError, match=r"absent/who\.png could not be written"):
        plot(labelled(2), "absent/who.png")
    with pytest.raises(DataError, match=r"who\.xyz could not be written"):
        plot(labelled(2), "who.xyz")
    with pytest.raises(DataError, match="has no client to draw"):
        plot(Dataset("none", {}, None), "who.png")
