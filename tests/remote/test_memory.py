"""What a large model costs each end in memory, beyond the model itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.engines.remote import Remote
from atoll.flight import Flight
from atoll.policy import synchronous
from atoll.round import Shell, ask
from atoll.store.journal import FileJournal
from atoll.store.memories import Kept
from atoll.types import ClientId, Event, Request
from tests.remote.ends import JOB, NORTH, hub_at

MODEL_BYTES, TENSORS = 1_000_000_000, 50
SPARE_BYTES = 64 << 20


class Watched:
    """The most of its own (RssAnon: page cache does not count) that this process held, above what it held at the beginning."""

    def __init__(self) -> None:
        self._floor = self._most = anonymous_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, anonymous_bytes())

    def grown_bytes(self) -> int:
        self._over.set()
        self._thread.join()
        return self._most - self._floor


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Anybody:
    """No cohort is kept."""

    def kept(self) -> None:
        return None

    def note(self, clients: Iterable[ClientId]) -> None: ...


class Quiet:
    def emit(self, event: Event) -> None: ...


SITE = """
import sys
from pathlib import Path
import torch
from atoll import tree
from atoll.remote.link import Link
from atoll.remote.values import Closed, Invited, Offered
from atoll.types import Update
from tests.remote.ends import QUICK
from tests.remote.test_memory import Watched
torch.set_num_threads(1)
link, watched = Link(sys.argv[1], None, "north", Path(sys.argv[2]), insecure=True, limits=QUICK), None
for event in link.events(60.0):
    if isinstance(event, Invited):
        link.consent(event.job, True)
    elif isinstance(event, Offered):
        if event.assignment.round:
            watched = Watched()  # one small exchange has warmed everything up
        link.answer(event.job, Update(*event.assignment[:3], tree.scale(event.assignment.tree, 2.0), 1.0, {}))
    elif isinstance(event, Closed):
        break
    del event
print(watched.grown_bytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_both_ends_hold_one_model_and_little_more(tmp_path: Path) -> None:
    """A model of 1 GB goes to a site in another process, an update comes back, is journalled and folded, by the one driver.

    Beyond the model, which the coordinator holds before, and which the site reads from a mapped file, each end holds one of
    its size: the coordinator the sum, the site the update that it has made. Neither holds 64 MiB more than that, ever.
    """
    torch.set_num_threads(1)
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        engine = Remote(hub, JOB, set(), Anybody(), {}, {}, Kept())
        journal, policy = FileJournal(tmp_path / "journal"), synchronous()
        root = Path(__file__).parents[2]
        place = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}
        program = [sys.executable, "-c", SITE, hub.address, str(tmp_path / "site")]
        with subprocess.Popen(program, cwd=root, env=place, stdout=subprocess.PIPE, text=True) as site:
            for round, size_bytes in enumerate((TENSORS * 4000, MODEL_BYTES)):
                numbers = size_bytes // TENSORS // 4
                params = tree.pack({f"w{i}": torch.full((numbers,), float(i)) for i in range(TENSORS)})
                journal.begin(round)
                engine.available([NORTH])
                watched = Watched()
                request = Request("train", [NORTH], lambda _, params=params: params, mean(), like=params)
                reduced = ask(request, round, policy, Flight(policy, engine), Shell(engine, journal, Quiet()), 0)
                grown = watched.grown_bytes()
                assert all(bool((x == 2.0 * i).all()) for i, x in enumerate(reduced.tree.values()))
                del reduced
            hub.close(JOB)
            told, _ = site.communicate(timeout=60.0)
    assert grown < MODEL_BYTES + SPARE_BYTES
    assert int(told) < MODEL_BYTES + SPARE_BYTES
