"""A trained model among a run's blobs: a folder of files, put there and taken out again."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from atoll.errors import StoreError, UnknownName
from atoll.store.places import Blobs, LocalFile, Place
from atoll.store.sealed import refuse_sealed

FOLDER = "model"
_PIECE_BYTES = 1 << 20


def keep(folder: Path, blobs: Blobs) -> None:
    """Put every file of the folder among the blobs. Raises StoreError where that can't be.

    >>> import tempfile
    >>> from atoll.store.places import Folder
    >>> made, kept, out = (Path(tempfile.mkdtemp()) for _ in range(3))
    >>> _ = (made / "weights").write_text("1 2 3")
    >>> keep(made, Folder(kept))
    >>> fetch(Folder(kept), out)
    >>> (out / "weights").read_text()
    '1 2 3'
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _copy(LocalFile(path), blobs.at(f"{FOLDER}/{path.relative_to(folder).as_posix()}"))


def fetch(blobs: Blobs, target: Path) -> None:
    """Write the files of the model to a folder, opened where they are sealed.

    Raises UnknownName where there is no model, StoreError where it is damaged or can't be written.
    """
    names = blobs.names(FOLDER)
    if not names:
        raise UnknownName(f"there is no model in {blobs}: a run has one when its last round is done")
    for name in names:
        inside = PurePosixPath(name).relative_to(FOLDER)
        if ".." in inside.parts or inside.is_absolute():
            raise StoreError(f"{blobs} holds {name!r}, which leads out of the folder; Atoll did not write it: delete it")
        path = target / inside
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the model can't be written to {target}: {error.strerror or error}; name another folder") from error
        _copy(blobs.at(name), LocalFile(path))


def _copy(source: Place, target: Place) -> None:
    with source.reading() as (read, size_bytes), target.writing(size_bytes) as write:
        left = size_bytes
        while left and (piece := read.read(min(left, _PIECE_BYTES))):
            if left == size_bytes:
                refuse_sealed(piece, str(source))  # a sealed place has opened it by here
            write.write(piece)
            left -= len(piece)
        if left:
            raise StoreError(f"{source} became shorter while it was read; try again")
