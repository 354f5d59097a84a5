"""A site's answers on its disk, from the moment at which they are given until the coordinator has settled them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

from atoll.errors import AtollError
from atoll.remote.chunks import Chunk
from atoll.remote.contents import pieces
from atoll.remote.spool import Spool
from atoll.remote.values import Blob, Limits, Place
from atoll.store import files
from atoll.types import Answer, ClientId


class Letter(NamedTuple):
    """An answer that waits."""

    job: str
    place: Place
    key: str  # of the assignment that it answers
    blob: Blob


class Outbox:
    """A folder of frames, and beside each a few words of what it answers; a letter is there when both are."""

    def __init__(self, folder: Path, limits: Limits = Limits()) -> None:  # noqa: B008
        self._folder, self._spool = files.make_folder(folder), Spool(folder / "frames", limits)
        self.letters: dict[tuple[str, Place], Letter] = {}
        files.sweep(folder)
        for file in sorted(folder.glob("*.json")):
            letter = _read(file)
            if letter is not None and self._whole(letter.blob):
                self.letters[letter.job, letter.place] = letter
            else:  # torn by a power cut: its work is offered again
                file.unlink()
        self._spool.keep([letter.blob for letter in self.letters.values()])

    def put(self, job: str, key: str, answer: Answer) -> Letter:
        """Keep an answer. On return it survives the death of the process."""
        blob = self._spool.put(pieces(answer))
        place = Place(answer.round, answer.client, answer.work)
        said = {"job": job, "round": place.round, "client": place.client, "work": place.work, "key": key, "blob": [*blob]}
        with files.replacing(self._file(blob), 0) as file:
            file.write(json.dumps(said).encode())
        self.letters[job, place] = Letter(job, place, key, blob)
        return self.letters[job, place]

    def path(self, letter: Letter) -> Path:
        """Its frame."""
        return self._spool.path(letter.blob)

    def chunk(self, letter: Letter, file: int, at: int, chunk_bytes: int) -> Chunk | None:
        """From `at` to the end of a chunk, out of its open file; None at its end. Raises Damaged."""
        data, mark = self._spool.read(letter.blob, file, at, chunk_bytes)
        return Chunk(data, mark) if data else None

    def drop(self, letter: Letter) -> None:
        """It is settled."""
        if self.letters.get((letter.job, letter.place)) == letter:
            del self.letters[letter.job, letter.place]
            self._file(letter.blob).unlink(missing_ok=True)
            self._spool.drop(letter.blob)

    def close(self) -> None:
        """Close the files; what they hold stays."""
        self._spool.close()

    def _file(self, blob: Blob) -> Path:
        return self._folder / f"{blob.digest}.json"

    def _whole(self, blob: Blob) -> bool:
        with contextlib.suppress(AtollError):
            self._spool.finish(self._spool.part(blob))
            return True
        return False


def _read(file: Path) -> Letter | None:
    try:
        said = json.loads(file.read_text())
        digest, size_bytes = said["blob"]
        return Letter(
            said["job"], Place(said["round"], ClientId(said["client"]), said["work"]), said["key"], Blob(digest, size_bytes)
        )
    except (ValueError, KeyError, TypeError):
        return None
