"""What a relay keeps of a job until it is settled above: for each piece of work, its clients' answers and who was heard.

A relay that is killed finds its clients' answers here and goes on to the same bits. What the coordinator says of the region's
answer is written here first, by a rename, and then passed on to the clients; after a kill it is passed on again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from atoll.deploy.cohort import Cohort
from atoll.remote.spool import spelled
from atoll.remote.values import Place
from atoll.store import files
from atoll.store.journal import FileJournal
from atoll.types import Assignment, ClientId
from atoll.wire import frame

_ENDS = {True: ".acknowledged", False: ".refused"}


class Settled(NamedTuple):
    """A piece of work that the coordinator has settled, and the answers of the region's clients to it."""

    folder: Path
    accepted: bool
    places: tuple[Place, ...]


class Shelf:
    """A folder of one job. It is also the cohort (`engines.remote.Cohort`) of the work that was opened last.

    >>> import tempfile, torch
    >>> from atoll.types import Update
    >>> shelf, client = Shelf(Path(tempfile.mkdtemp())), ClientId("north")
    >>> shelf.open(Assignment(3, client, "train", {"w": torch.ones(2)}, 7)).accept(Update(3, ClientId("a"), "train", {}, 1.0, {}))
    >>> shelf.heard(Place(3, client, "train"), [ClientId("a")])
    >>> shelf.settle(Place(3, client, "train"), True)
    >>> [(each.accepted, each.places) for each in shelf.settled()]
    [(True, (Place(round=3, client='a', work='train'),))]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = files.make_folder(folder)
        self._cohort: Cohort | None = None

    def open(self, assignment: Assignment) -> FileJournal:
        """The journal of a piece of work, its round begun; what it holds of another question is dropped."""
        folder, question = self._of(Place(assignment.round, assignment.client, assignment.work)), _digest(assignment)
        note = folder / "question"
        if folder.exists() and not (note.exists() and note.read_text() == question):
            shutil.rmtree(folder)
        files.make_folder(folder)
        with files.replacing(note, 0) as file:
            file.write(question.encode())
        journal = FileJournal(folder / "answers")
        self._cohort = Cohort(folder / "cohort.json", journal)
        journal.begin(assignment.round)
        return journal

    def kept(self) -> frozenset[ClientId] | None:
        """As `Cohort`."""
        return self._cohort.kept() if self._cohort else None

    def note(self, clients: Iterable[ClientId]) -> None:
        """As `Cohort`."""
        if self._cohort:
            self._cohort.note(clients)

    def heard(self, place: Place, clients: Iterable[ClientId]) -> None:
        """These are in the region's answer; call it before that is given."""
        with files.replacing(self._of(place) / "heard.json", 0) as file:
            file.write(json.dumps(list(clients)).encode())

    def settle(self, place: Place, accepted: bool) -> None:
        """Keep what the coordinator says of the region's answer; a place of which nothing is kept has nothing to settle."""
        folder = self._of(place)
        if folder.exists():
            settled = folder.with_name(folder.name + _ENDS[accepted])
            shutil.rmtree(settled, ignore_errors=True)  # of the same place, from before it was asked again
            os.replace(folder, settled)

    def settled(self) -> Iterator[Settled]:
        """What was settled and is still to be passed on; `forget` what was."""
        for accepted, ending in _ENDS.items():
            for folder in sorted(self.folder.glob(f"*{ending}")):
                journal = FileJournal(folder / "answers")
                places = tuple(Place(*each) for round in journal.rounds() for each in journal.places(round))
                if accepted:  # of the others the relay has said already that they were not wanted
                    heard = set(json.loads((folder / "heard.json").read_text()))
                    places = tuple(place for place in places if place.client in heard)
                yield Settled(folder, accepted, places)

    def forget(self, settled: Settled) -> None:
        """It was passed on."""
        shutil.rmtree(settled.folder, ignore_errors=True)

    def _of(self, place: Place) -> Path:
        return self.folder / f"{place.round:08d}.{spelled(place.work)}"


def _digest(assignment: Assignment) -> str:
    """SHA-256 of what is asked."""
    digest = hashlib.sha256()
    for piece in frame.write(assignment):
        digest.update(piece)
    return digest.hexdigest()
