"""A model is kept where the run's blobs are, and comes back as it was written."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from atoll.errors import StoreError, UnknownName
from atoll.store import models
from atoll.store.bucket import Bucket
from atoll.store.keys import Keys
from atoll.store.places import Folder
from atoll.store.runs import Store

FILES = {"model.safetensors": bytes(range(256)) * 9000, "config.json": b"{}", "sub/empty": b""}


def save(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def found(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("url", [None, "memory"])
@pytest.mark.parametrize("keys", [None, Keys(bytes(32))], ids=["plain", "sealed"])
def test_it_comes_back(tmp_path: Path, url: str | None, keys: Keys | None) -> None:
    where = f"memory://{uuid.uuid4()}" if url else None
    if keys:
        pytest.importorskip("cryptography")
    with Store(tmp_path / "runs", blobs=where, keys=keys) as store, store.create("a", {}, seed=0, rounds=1) as run:
        with pytest.raises(UnknownName, match="there is no model"):
            run.fetch_model(tmp_path / "out")
        kept = run.keep_model(save)
        assert kept == f"{f'{where}/{run.id}' if where else run.folder}/model"
        run.fetch_model(tmp_path / "out")
        assert found(tmp_path / "out") == FILES
        if where:
            assert not (run.folder / "model").exists()
        else:
            assert (found(run.folder / "model") == FILES) == (keys is None)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    class Hostile(Folder):
        def names(self, under: str) -> list[str]:
            return ["model/../../out"]

    with pytest.raises(StoreError, match="leads out of the folder"):
        models.fetch(Hostile(tmp_path), tmp_path / "in" / "out")


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    bucket = Bucket(f"memory://{uuid.uuid4()}")
    save(tmp_path / "made")
    models.keep(tmp_path / "made", bucket)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="name another folder"):
        models.fetch(bucket, tmp_path / "file" / "out")
