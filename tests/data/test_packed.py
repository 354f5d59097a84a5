"""A data set in one file: what is read is what was written, damage is told, and a pickle is a path."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from typer.testing import CliRunner

from atoll.cli.main import app
from atoll.data.digits import digits
from atoll.data.examples import Tensors
from atoll.data.mapped import mapped
from atoll.data.packed import DTYPES, pack
from atoll.data.text import Texts
from atoll.errors import DataError, VersionError
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.text import parse
from atoll.types import Batch, ClientId, Dataset, Examples


class Lazy:
    """Examples that are no Tensors."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def take(self, index: Tensor) -> Batch:
        return {"y": index + self.first}


def everything(examples: Examples) -> Batch:
    return examples.take(torch.arange(len(examples)))


def same(one: Dataset, two: Dataset) -> None:
    assert list(one.clients) == list(two.clients)
    pairs = [(one.clients[c][s], two.clients[c][s]) for c in one.clients for s in one.clients[c]]
    assert (one.test is None) == (two.test is None)
    if one.test is not None and two.test is not None:
        pairs.append((one.test, two.test))
    for a, b in pairs:
        x, y = everything(a), everything(b)
        assert set(x) == set(y)
        assert all(x[name].dtype == y[name].dtype and torch.equal(x[name], y[name]) for name in x)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return pack(digits(clients=5, seed=3), tmp_path / "digits.safetensors")


def test_what_is_written_is_read(file: Path) -> None:
    data = mapped(str(file))
    same(digits(clients=5, seed=3), data)
    assert data.name == "digits"
    assert data.about["licence"]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_shape(dtype: torch.dtype, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (7, 3, 2), generator=draw).to(dtype)
    columns = {"x": x, "z": torch.rand(7, generator=draw), "none": torch.zeros(7, 0)}
    parts = Tensors(columns)
    clients = {ClientId("b"): {"train": parts.span(0, 3), "own": parts.span(3, 3)}, ClientId("ä"): {"train": parts.span(3, 7)}}
    data = mapped(str(pack(Dataset("d", clients, None), tmp_path / "d")))
    same(Dataset("d", clients, None), data)
    assert len(data.clients[ClientId("ä")]["own"]) == 0
    assert data.test is None
    assert all(column.data_ptr() % dtype.itemsize == 0 for column in data.clients.whole.columns.values())  # type: ignore[attr-defined]


def test_what_is_no_tensor_in_memory_is_written_too_and_more_than_fits_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.data.packed._AT_ONCE_BYTES", 100)
    clients = {ClientId(f"c{i}"): {"train": Lazy(50 * i, 5 + i)} for i in range(9)}
    whole = Dataset("lazy", clients, Lazy(1000, 40))
    same(whole, mapped(str(pack(whole, tmp_path / "lazy"))))


def test_a_job_gives_the_same_bits_with_either(file: Path) -> None:
    rest = """[task]\nname = "classification"\n[task.model]\nname = "mlp"\ninputs = 64\nhidden = [8]
[local]\nname = "sgd"\nbatch_size = 16\n[algorithm]\nname = "fedavg"\n[evaluation]\nper_client = true\nexamples = 30"""
    runs = []
    for data in ('name = "digits"\nclients = 5', f'name = "mapped"\npath = "{file}"'):
        job = check(parse(f"atoll = 1\nrounds = 2\nseed = 3\n[data]\n{data}\n{rest}"))
        runs.append(build(job).run(2))
    assert all(torch.equal(runs[0].params[name], runs[1].params[name]) for name in runs[0].params)
    assert all(runs[0].metrics[name] == runs[1].metrics[name] for name in ("loss", "accuracy"))


def test_a_task_that_does_not_fit_is_told_by_one_example(tmp_path: Path) -> None:
    """The largest class is in the last client; the server's, which is larger, is not the clients'."""
    y = torch.tensor([0, 1, 2, 0, 1, 9, 3, 11])
    parts = Tensors({"x": torch.zeros(8, 4), "y": y})
    clients = {ClientId(f"c{i}"): {"train": parts.span(2 * i, 2 * i + 2)} for i in range(3)}
    data = mapped(str(pack(Dataset("d", clients, parts.span(6, 8)), tmp_path / "d")))
    told = [int(parts.take(torch.tensor([row]))["y"]) for row in data.clients.telling]  # type: ignore[attr-defined]
    assert told == [0, 9]


def test_a_pickle_is_a_path_and_rows(file: Path) -> None:
    data = mapped(str(file))
    client = data.clients[ClientId("client-1")]["train"]
    assert isinstance(client, Tensors)
    for thing in (client, client.subset(torch.arange(4)), data.clients, data.test):
        assert len(pickle.dumps(thing)) < 1000
    again = pickle.loads(pickle.dumps(client))
    assert torch.equal(again.column("x"), client.column("x"))
    assert again.columns["x"].data_ptr() == client.columns["x"].data_ptr()  # one mapping a process
    same(data, pickle.loads(pickle.dumps(data)))


def test_a_pickle_of_what_has_changed_since_is_refused(file: Path) -> None:
    pickled = pickle.dumps(mapped(str(file)).clients)
    pack(digits(clients=5, seed=4), file)
    with pytest.raises(DataError, match="holds other data than it did"):
        pickle.loads(pickled)
    file.unlink()
    with pytest.raises(DataError, match=r"no file .*digits.safetensors on this machine"):
        pickle.loads(pickled)


def test_who_reads_a_file_is_not_disturbed_by_a_new_one(file: Path) -> None:
    data, before = mapped(str(file)), digits(clients=5, seed=3)
    pack(digits(clients=2, seed=9), file)
    same(before, data)
    assert len(mapped(str(file)).clients) == 2


def changed(file: Path, name: str, **keys: object) -> Path:
    """The file with other values in its header's own object, or in its header (`tensors`)."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    told = json.loads(header["__metadata__"]["atoll"])
    if keys.pop("drop", None):
        del told[name]
    elif name in told:
        told[name] = keys["to"]
    else:
        header[keys["to"]] = header.pop(name)
    header["__metadata__"]["atoll"] = json.dumps(told)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return file


def test_damage_is_told(file: Path, tmp_path: Path) -> None:
    def copy() -> Path:
        return Path(shutil.copy(file, tmp_path / "copy"))

    with pytest.raises(VersionError, match="format 2, and this Atoll reads up to 1"):
        mapped(str(changed(copy(), "format", to=2)))
    with pytest.raises(DataError, match="its header has no splits"):
        mapped(str(changed(copy(), "splits", drop=True)))
    with pytest.raises(DataError, match="hold rows that are not there"):
        mapped(str(changed(copy(), "splits", to=["train"])))
    with pytest.raises(DataError, match=r"has no clients\.bounds"):
        mapped(str(changed(copy(), "clients.bounds", to="data.bounds")))
    for spoilt, says in ((file.read_bytes()[:-9], "is damaged"), (b"nonsense" * 9, "is damaged"), (b"", "is damaged")):
        copy().write_bytes(spoilt)
        with pytest.raises(DataError, match=says):
            mapped(str(tmp_path / "copy"))
    with pytest.raises(DataError, match="no file"):
        mapped(str(tmp_path / "absent"))
    with pytest.raises(DataError):
        mapped(str(tmp_path))


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, file: Path) -> None:
    class Broken(Lazy):
        def take(self, index: Tensor) -> Batch:
            if len(index) > 1:
                raise RuntimeError("the disk is gone")
            return super().take(index)

    before = file.read_bytes()
    a, one = ClientId("a"), Tensors({"y": torch.arange(2)})
    for wrong, says in (
        ({a: {"train": Texts(["x"])}}, "holds texts"),
        ({a: {"train": Lazy(0, 0)}}, "no examples"),
        ({a: {"train": one, "test": Tensors({"x": torch.arange(2)})}}, "differ in their columns"),
        ({a: {"train": one, "test": Tensors({"y": torch.zeros(2)})}}, "differ in their columns"),
        ({a: {"train": Tensors({"y": torch.zeros(2, dtype=torch.complex64)})}}, "complex64"),
    ):
        with pytest.raises(DataError, match=says):
            pack(Dataset("d", wrong, None), file)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        pack(Dataset("d", {a: {"train": Broken(0, 5)}}, None), file)
    with pytest.raises(DataError, match="could not be written"):
        pack(Dataset("d", {a: {"train": one}}, None), file / "inside")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_any_safetensors_library_reads_it(file: Path) -> None:
    with safe_open(file, framework="np") as content:
        assert content.get_tensor("data.x").shape == (1797, 1, 8, 8)
        assert json.loads(content.metadata()["atoll"])["splits"] == ["train", "test"]


def test_the_command_writes_what_a_job_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    say = CliRunner().invoke
    done = say(app, ["data", "pack", "digits", "d.safetensors", "--set", "clients=3"])
    assert (done.exit_code, "3 clients" in done.output) == (0, True), done.output
    shown = say(app, ["data", "show", "mapped", "--set", "path=d.safetensors"])
    assert shown.output == say(app, ["data", "show", "digits", "--set", "clients=3"]).output
