"""Who could be asked in the open round: kept, so that a round that is begun again after a kill asks the same clients."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from atoll.store import files
from atoll.store.journal import FileJournal
from atoll.types import ClientId


class Cohort:
    """A file beside a run's journal.

    >>> import tempfile
    >>> from atoll.types import Failure
    >>> folder = Path(tempfile.mkdtemp())
    >>> journal = FileJournal(folder / "journal")
    >>> cohort = Cohort(folder / "cohort.json", journal)
    >>> journal.begin(0)
    >>> cohort.note([ClientId("north"), ClientId("south")])
    >>> cohort.kept() is None
    True
    >>> journal.accept(Failure(0, ClientId("north"), "train", "lost", ""))
    >>> sorted(cohort.kept())
    ['north', 'south']
    """

    def __init__(self, path: Path, journal: FileJournal) -> None:
        self._path, self._journal = path, journal

    def kept(self) -> frozenset[ClientId] | None:
        """Who could be asked when the open round began; None where no answer of it is kept, so that anybody may be."""
        begun = next(self._journal.places(max(self._journal.rounds(), default=0)), None) is not None
        if not begun or not self._path.exists():
            return None
        return frozenset(map(ClientId, json.loads(self._path.read_text(encoding="utf-8"))))

    def note(self, clients: Iterable[ClientId]) -> None:
        """These can be asked in the round that now begins."""
        told = json.dumps(sorted(clients)).encode()
        with files.replacing(self._path, len(told)) as file:
            file.write(told)
