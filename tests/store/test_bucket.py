"""Blobs below a URL: the same runs, with their checkpoints in a bucket; memory, and files by way of fsspec, are the buckets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

from atoll.errors import ConfigError, MissingExtra, StoreError
from atoll.store import checkpoints
from atoll.store.bucket import Bucket
from atoll.store.keys import Keys
from atoll.store.places import Blobs, Folder, opened
from atoll.store.runs import Store
from atoll.store.sealed import SealedBlobs
from atoll.testing.store import check_store, same_bits, trees

fsspec = pytest.importorskip("fsspec", reason="URLs need it: pip install 'atoll[blobs]'")


def write(blobs: Blobs, name: str, data: bytes) -> None:
    with blobs.at(name).writing(len(data)) as file:
        file.write(data)


def read(blobs: Blobs, name: str) -> bytes:
    with blobs.at(name).reading() as (file, size_bytes):
        found = file.read(size_bytes + 1)
    assert len(found) == size_bytes
    return found


def interrupted(blobs: Blobs, name: str) -> None:
    with blobs.at(name).writing(8) as file:
        file.write(b"half")
        raise KeyboardInterrupt


@pytest.fixture(params=["folder", "file", "local", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    url = {
        "folder": f"{tmp_path}/some where",
        "file": f"file://{tmp_path}/some%20where",
        "local": f"local://{tmp_path}/below",  # the same disk, but by way of fsspec
        "memory": f"memory://{uuid.uuid4()}/below",
    }[request.param]
    found = opened(url)
    assert isinstance(found, Bucket if request.param in ("local", "memory") else Folder)
    return found


def test_what_is_written_is_read_listed_replaced_and_deleted(blobs: Blobs) -> None:
    assert blobs.names("a") == []
    for name in ("a/2", "a/1", "a/b/c d", "other"):
        write(blobs, name, name.encode())
    assert blobs.names("a") == ["a/1", "a/2", "a/b/c d"]
    assert read(blobs, "a/b/c d") == b"a/b/c d"
    write(blobs, "a/1", b"new")
    assert read(blobs, "a/1") == b"new"
    for _ in range(2):
        blobs.delete("a/1")
    assert blobs.names("a") == ["a/2", "a/b/c d"]
    with pytest.raises(StoreError, match="a/1 does not exist"):
        read(blobs, "a/1")


def test_what_fails_in_the_middle_leaves_what_was_there(blobs: Blobs) -> None:
    write(blobs, "a/1", b"before")
    for name in ("a/1", "a/2"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(blobs, name)
    assert read(blobs, "a/1") == b"before"
    assert blobs.names("a") == ["a/1"]
    write(blobs, "a/2", b"after")
    assert read(blobs, "a/2") == b"after"


@pytest.mark.parametrize("keys", [None, Keys(bytes(32))], ids=["plain", "sealed"])
def test_checkpoints_come_back_bit_for_bit_and_only_the_last_are_kept(blobs: Blobs, keys: Keys | None) -> None:
    blobs = SealedBlobs(blobs, keys, "run") if keys else blobs
    value = [*trees(), {"large": torch.randn(500_000)}]
    for round in (1, 2, 10):
        checkpoints.save(blobs, round, [round, *value], {"place": round})
    assert blobs.names("checkpoints") == ["checkpoints/00000002.safetensors", "checkpoints/00000010.safetensors"]
    found = checkpoints.latest(blobs, None)
    assert found is not None
    assert found.extra == {"place": 10}
    assert same_bits(found.state, [10, *value])


def test_a_torn_blob_is_passed_over(blobs: Blobs) -> None:
    for round in (1, 2):
        checkpoints.save(blobs, round, {"w": torch.ones(100)}, {})
    name = "checkpoints/00000002.safetensors"
    write(blobs, name, read(blobs, name)[:-3])
    found = checkpoints.latest(blobs, None)
    assert found is not None
    assert found.round == 1
    assert len(found.passed_over) == 1


def test_the_laws_of_a_store_hold(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4()}"
    check_store(lambda: Store(tmp_path / "runs", blobs=url))


def test_a_run_knows_where_its_blobs_are_and_keeps_only_what_must_be_local(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4()}"
    with Store(tmp_path / "runs", blobs=url, keys=Keys(bytes(32))) as store, store.create("a", {}, seed=0, rounds=2) as run:
        run.checkpoint(1, {"w": torch.ones(3)})
    with Store(tmp_path / "runs", keys=Keys(bytes(32))) as store, store.open("last") as run:
        found = run.latest({"w": torch.zeros(3)})
        assert found is not None
        assert found[1]["w"].tolist() == [1.0, 1.0, 1.0]
        assert run.blobs.names("checkpoints") == ["checkpoints/00000001.safetensors"]
        assert Bucket(url).names(run.id) == [f"{run.id}/checkpoints/00000001.safetensors"]
        assert not (run.folder / "checkpoints").exists()


def test_a_url_of_no_known_kind_is_refused_before_a_run_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere://x is no place for blobs"):
        Store(tmp_path, blobs="nowhere://x")
    assert list(tmp_path.iterdir()) == []


def test_the_package_behind_a_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"s3://bucket/x needs a package that is not here: .*s3fs"):
        opened("s3://bucket/x")


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtra, match=r"atoll\[blobs\]"):
        opened("memory://x")


KILLED = """
import sys, os, signal
from atoll.store.places import opened
from atoll.store.keys import Keys
from atoll.store.sealed import SealedBlobs
blobs = SealedBlobs(opened(sys.argv[1]), Keys(bytes(32)), "run")
with blobs.at("a/1").writing(6) as file:
    file.write(b"before")
with blobs.at("a/1").writing(1 << 24) as file:
    for _ in range(8):
        file.write(bytes(1 << 20))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_killed_in_mid_write_what_was_there_stays(tmp_path: Path, scheme: str) -> None:
    where = f"{scheme}{tmp_path}/below"
    done = subprocess.run([sys.executable, "-c", KILLED, where], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == -signal.SIGKILL
    blobs = SealedBlobs(opened(where), Keys(bytes(32)), "run")
    assert blobs.names("a") == ["a/1"]
    assert read(blobs, "a/1") == b"before"
    write(blobs, "a/1", b"after")
    assert read(blobs, "a/1") == b"after"
    assert scheme or not list(tmp_path.rglob(".*.tmp")), "the next writer removes what was left"
