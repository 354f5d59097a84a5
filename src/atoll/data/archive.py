"""The files of a wheel, a source archive or a Debian package, read without unpacking what nobody asked for."""

from __future__ import annotations

import lzma
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)


def members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of each regular file of a wheel, a tar file or a Debian package; links and devices are passed over.

    Nothing is written, and names are as the archive has them: the caller judges where they lead.
    One that is damaged raises one of `DAMAGED`, here or where its content is read.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as source:
                        yield info.filename, source
        return
    if archive.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as unpack:
            assert unpack.stdout is not None
            yield from _of_tar(unpack.stdout, "r|")
        return
    with archive.open("rb") as file:
        yield from _of_tar(file, "r|*")


def _of_tar(file: IO[bytes], mode: Literal["r|", "r|*"]) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for member in tar:
            source = tar.extractfile(member) if member.isreg() else None
            if source is not None:
                yield member.name.removeprefix("./"), source
