"""Data of one's own: tables, folders and saved hub data sets, and what is said of the wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from atoll.data.folder import folder
from atoll.data.frame import inputs, target
from atoll.data.hub import hub
from atoll.data.partition.dirichlet import dirichlet
from atoll.data.table import table
from atoll.data.text import Texts
from atoll.errors import ConfigError, DataError, FetchError, MissingExtra, UnknownName
from atoll.types import ClientId, Dataset, Examples


def everything(examples: Examples) -> dict[str, torch.Tensor]:
    return dict(examples.take(torch.arange(len(examples))))


def patients(rows: int = 60) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": np.linspace(20, 80, rows),
            "sex": ["f", "m"] * (rows // 2),
            "site": ["north", "south", "east"] * (rows // 3),
            "ill": ["no", "yes", "no", "no"] * (rows // 4),
        }
    )


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_a_table_is_one_client_a_value(tmp_path: Path, form: str) -> None:
    path, frame = tmp_path / f"patients.{form}", patients()
    if form == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if form == "tsv" else ",", index=False)
    data = table(str(path), label="ill", by="site", test_fraction=0.2, server_fraction=0.1)
    assert list(data.clients) == ["east", "north", "south"]
    assert data.about["features"] == ["age", "sex f", "sex m"]
    assert data.about["labels"] == ["no", "yes"]
    north = data.clients[ClientId("north")]
    assert (len(north["train"]), len(north["test"]), len(data.test or ())) == (14, 4, 6)
    batch = everything(north["train"])
    assert (batch["x"].shape, batch["x"].dtype, batch["y"].dtype) == ((14, 3), torch.float32, torch.int64)


def test_numbers_are_standardised_words_one_hot_and_gaps_marked() -> None:
    frame = pd.DataFrame({"a": [1.0, 3.0, None], "b": ["u", None, "v"], "c": [True, False, True], "d": [5, 5, 5]})
    x, names = inputs(frame, ["a", "b", "c", "d"])
    assert names == ["a", "a missing", "b u", "b v", "c False", "c True", "d"]
    assert x.tolist() == [[-1, 0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0, 0], [0, 1, 0, 1, 0, 1, 0]]


def test_a_measurement_is_a_float_and_a_class_a_number() -> None:
    measured, names = target(pd.DataFrame({"y": [0.5, 1.5]}), "y")
    assert (measured.tolist(), names) == ([[0.5], [1.5]], [])
    for values in ([3, 7, 3], [3.0, 7.0, 3.0], ["x", "y", "x"], [False, True, False]):
        classes, names = target(pd.DataFrame({"y": values}), "y")
        assert classes.tolist() == [0, 1, 0]
        assert len(names) == 2


def test_a_table_without_clients_is_divided_by_a_partition(tmp_path: Path) -> None:
    patients(200 - 200 % 12).to_csv(tmp_path / "p.csv", index=False)
    assert len(table("p.csv", "ill").clients) == 10
    assert len(table("p.csv", "ill", clients=4, partition=dirichlet(1.0)).clients) == 4
    assert list(table("p.csv", "ill", by="site", clients=2).clients) == ["east", "north"]


def test_wrong_tables_are_named_with_their_column(tmp_path: Path) -> None:
    frame = patients()
    frame.to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(UnknownName, match="no column is called 'il'; did you mean 'ill'"):
        table("p.csv", "il")
    with pytest.raises(UnknownName, match="no column is called 'sit'; did you mean 'site'"):
        table("p.csv", "ill", by="sit")
    with pytest.raises(UnknownName, match="no column is called 'agee'"):
        table("p.csv", "ill", features=["agee"])
    with pytest.raises(DataError, match="'ill' is the label and a feature at once"):
        table("p.csv", "ill", features=["ill", "age"])
    with pytest.raises(ConfigError, match="clients is 4, but the column 'site' has 3"):
        table("p.csv", "ill", by="site", clients=4)
    with pytest.raises(DataError, match="there is no file"):
        table("absent.csv", "ill")
    with pytest.raises(DataError, match=r"ends in '\.xlsx'"):
        table("p.xlsx", "ill")

    def broken(**columns: Any) -> str:
        frame.assign(**columns).to_csv(tmp_path / "broken.csv", index=False)
        return "broken.csv"

    with pytest.raises(DataError, match="the label 'ill' is missing in 2 rows, first in row 3"):
        table(broken(ill=[None if row in (3, 9) else "no" for row in range(60)]), "ill")
    with pytest.raises(DataError, match="the column 'age' holds an infinity in row 5"):
        table(broken(age=[np.inf if row == 5 else 1.0 for row in range(60)]), "ill")
    with pytest.raises(DataError, match="the column 'age' holds no number at all"):
        table(broken(age=[np.nan] * 60), "ill")
    with pytest.raises(DataError, match="the column 'site' names the client of a row, but is empty in 1 rows"):
        table(broken(site=[None] + ["x"] * 59), "ill", by="site")
    with pytest.raises(DataError, match="holds an infinity in row 0"):
        table(broken(ill=[np.inf] + [0.5] * 59), "ill")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "no_rows.csv").write_text("a,b\n")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"empty\.csv cannot be read as a table"):
        table("empty.csv", "ill")
    with pytest.raises(DataError, match=r"no_rows\.csv has no rows"):
        table("no_rows.csv", "b")
    with pytest.raises(DataError, match=r"text\.parquet cannot be read as a table"):
        table("text.parquet", "ill")


def test_a_column_that_is_no_category_is_refused() -> None:
    with pytest.raises(DataError, match="'name' holds 1001 different values, which is no category"):
        inputs(pd.DataFrame({"name": [f"n{number}" for number in range(1001)]}), ["name"])
    with pytest.raises(DataError, match="'name' holds 101 different words"):
        target(pd.DataFrame({"name": [f"n{number}" for number in range(101)]}), "name")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'atoll\[data\]'"):
        table("p.csv", "ill")


def test_a_folder_of_tables_is_one_client_a_sub_folder(tmp_path: Path) -> None:
    for name, rows in (("north", 24), ("south", 36)):
        (tmp_path / "sites" / name).mkdir(parents=True)
        patients(rows).drop(columns="site").to_csv(tmp_path / "sites" / name / "a.csv", index=False)
    data = folder("sites", label="ill", test_fraction=0.0, server_fraction=0.0)
    assert {name: len(splits["train"]) for name, splits in data.clients.items()} == {"north": 24, "south": 36}
    assert data.about["features"] == ["age", "sex f", "sex m"]


def test_a_folder_of_arrays_keeps_their_names(tmp_path: Path) -> None:
    for name, rows in (("a", 5), ("b", 7)):
        (tmp_path / "arrays" / name).mkdir(parents=True)
        np.savez(tmp_path / "arrays" / name / "part.npz", x=np.ones((rows, 3)), y=np.arange(rows, dtype=np.int32))
    data = folder("arrays", test_fraction=0.0, server_fraction=0.0)
    batch = everything(data.clients[ClientId("b")]["train"])
    assert (batch["x"].shape, batch["x"].dtype, batch["y"].tolist()) == ((7, 3), torch.float32, list(range(7)))
    assert list(folder("arrays", clients=1).clients) == ["b"]


def test_a_folder_of_texts_is_a_client_of_paragraphs(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        (tmp_path / "notes" / name).mkdir(parents=True)
        (tmp_path / "notes" / name / "a.txt").write_text(f"{name} one\n\n{name} two\n\n\n{name} three\n")
    data = folder("notes", test_fraction=0.34, server_fraction=0.0)
    train = data.clients[ClientId("ann")]["train"]
    assert isinstance(train, Texts)
    assert train.text == ["ann one", "ann two"]
    assert list(folder("notes", clients=1).clients) == ["ann"]
    with pytest.raises(ConfigError, match="clients is 3, but"):
        folder("notes", clients=3)


def test_a_folder_of_images_is_by_class_or_by_client_and_class(tmp_path: Path) -> None:
    for client in ("a", "b"):
        for name, shade in (("dark", 0), ("light", 255)):
            for root in (tmp_path / "by_client" / client / name, tmp_path / "by_class" / name):
                root.mkdir(parents=True, exist_ok=True)
                for number in range(3):
                    Image.new("RGB", (4, 5), (shade,) * 3).save(root / f"{client}{number}.png")
    data = folder("by_client", test_fraction=0.0, server_fraction=0.0)
    assert list(data.clients) == ["a", "b"]
    batch = everything(data.clients[ClientId("a")]["train"])
    assert batch["x"].shape == (6, 3, 5, 4)
    assert torch.equal(batch["x"].mean(dim=(1, 2, 3)), batch["y"].float())  # dark is 0, light is 1
    assert len(folder("by_class", clients=3).clients) == 3
    square = folder("by_class", clients=2, image_size=8).test
    assert square is not None
    assert everything(square)["x"].shape[1:] == (3, 8, 8)
    Image.new("L", (9, 9)).save(tmp_path / "by_class" / "dark" / "z.png")
    with pytest.raises(DataError, match=r"z\.png has shape \(1, 9, 9\).*set image_size"):
        folder("by_class")


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    def client(name: str, file: str, content: bytes) -> None:
        path = tmp_path / name / "ann" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content)

    with pytest.raises(DataError, match="there is no folder absent"):
        folder("absent")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="bare has no sub-folder"):
        folder("bare")
    (tmp_path / "bare" / "ann").mkdir()
    with pytest.raises(DataError, match="client 'ann' has no data"):
        folder("bare")
    client("docs", "a.pdf", b"")
    with pytest.raises(DataError, match=r"a\.pdf is of no kind that is read here"):
        folder("docs")
    client("latin", "a.txt", b"\xff\xfe\xff")
    with pytest.raises(DataError, match="a text of client 'ann' is not UTF-8"):
        folder("latin")
    client("blank", "a.txt", b"\n\n  \n")
    with pytest.raises(DataError, match="client 'ann' has no data: its texts"):
        folder("blank")
    client("torn", "a.npz", b"PK torn")
    with pytest.raises(DataError, match=r"a\.npz cannot be read as \.npz"):
        folder("torn")
    client("image", "a.png", b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        folder("image")
    client("mixed", "a.txt", b"text")
    (tmp_path / "mixed" / "ann" / "a.csv").write_text("a,y\n1,2\n")
    with pytest.raises(DataError, match="mixes tables and texts"):
        folder("mixed")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([1.0, np.nan]), "y": np.array([0, 1])}, "'x' holds NaN, first in example 1"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3)}, "needs one or more arrays of one length"),
        ({"x": np.array(["a", "b"])}, "only numbers can be learnt from"),
        ({"x": np.array([{}, {}])}, "cannot be read as .npz"),  # a pickle
        ({"z": np.zeros(2)}, r"holds the arrays \['z'\], but others hold \['x', 'y'\]"),
        ({"x": np.zeros((2, 4)), "y": np.zeros(2, dtype=int)}, "only the first axis may differ"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    for name, content in (("ann", {"x": np.zeros((4, 3)), "y": np.zeros(4, dtype=int)}), ("bob", arrays)):
        (tmp_path / "arrays" / name).mkdir(parents=True)
        np.savez(tmp_path / "arrays" / name / "part.npz", **content)
    with pytest.raises(DataError, match=rf"part\.npz.*{message}"):
        folder("arrays")


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A data set of Hugging Face, saved to a folder."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "text": [f"text {number}" for number in range(40)],
        "answer": [f"answer {number}" for number in range(40)],
        "label": [number % 2 for number in range(40)],
        "size": [float(number) for number in range(40)],
        "user": [f"user {number % 4}" for number in range(40)],
    }
    features = datasets.Features(
        {
            **{name: datasets.Value("string") for name in ("text", "answer", "user")},
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "size": datasets.Value("float64"),
        }
    )
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole}).save_to_disk(tmp_path / "saved")
    whole.select([]).save_to_disk(tmp_path / "empty")
    return str(tmp_path / "saved")


def test_a_saved_data_set_of_texts(saved: str) -> None:
    data = hub(saved, text="text", label="label", by="user", test_fraction=0.2, server_fraction=0.1)
    assert list(data.clients) == [f"user {number}" for number in range(4)]
    assert data.about["labels"] == ["bad", "good"]
    train = data.clients[ClientId("user 1")]["train"]
    assert isinstance(train, Texts)
    assert set(train.labels or ()) == {1}
    pairs = hub(saved, text="text", target_text="answer", clients=3)
    first = pairs.clients[ClientId("client-0")]["train"]
    assert isinstance(first, Texts)
    assert [text.replace("text", "answer") for text in first.text] == first.target
    assert len(hub(saved, text="text", label="label", clients=2, partition=dirichlet(1.0), limit=30).clients) == 2


def test_a_saved_data_set_as_a_table(saved: str) -> None:
    data = hub(saved, label="label", features=["size"], by="user")
    batch = everything(data.clients[ClientId("user 0")]["train"])
    assert batch["x"].shape[1] == 1
    assert set(batch["y"].tolist()) == {0}


def test_a_saved_data_set_of_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    images = [Image.new("L", (4, 6), 51 * number) for number in range(6)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 2] * 3}, features=features)
    rows.save_to_disk(tmp_path / "images")
    data = hub(str(tmp_path / "images"), image="image", label="label", clients=1, test_fraction=0.0, server_fraction=0.0)
    batch = everything(data.clients[ClientId("client-0")]["train"])
    assert batch["x"].shape == (6, 1, 6, 4)
    assert batch["x"].amax(dim=(1, 2, 3)).tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert batch["y"].tolist() == [0, 2, 0, 2, 0, 2]  # the numbers of the data set, though no example is of class 1


def test_wrong_hub_arguments_are_named(saved: str) -> None:
    with pytest.raises(UnknownName, match="no column is called 'txt'; did you mean 'text'"):
        hub(saved, text="txt")
    with pytest.raises(UnknownName, match="no split is called 'trian'; did you mean 'train'"):
        hub(saved, split="trian", text="text")
    with pytest.raises(DataError, match=r"has no rows|could not be loaded"):  # which one, depends on the version of datasets
        hub(str(Path(saved).parent / "empty"), text="text")
    with pytest.raises(ConfigError, match="limit is 0, but must be 1 or more"):
        hub(saved, text="text", limit=0)
    with pytest.raises(ConfigError, match="neither text nor label"):
        hub(saved)
    with pytest.raises(ConfigError, match="text and image are both given"):
        hub(saved, text="text", image="label")
    with pytest.raises(DataError, match=r"the column 'size' holds 0\.0 in row 0, which is no text"):
        hub(saved, text="size")
    with pytest.raises(DataError, match="which is no image"):
        hub(saved, image="size", label="label")
    with pytest.raises(FetchError, match="could not be loaded"):
        hub("no-such-owner/no-such-set", text="text")


def test_a_table_of_one_client_is_a_federation_too(tmp_path: Path) -> None:
    patients(12).to_csv(tmp_path / "p.csv", index=False)
    data: Dataset = table("p.csv", "ill", clients=1, server_fraction=0.0)
    assert list(data.clients) == ["client-0"]
    assert data.test is None
