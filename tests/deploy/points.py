"""Where a coordinator or a site may die: a table of places with names, and a wrapper around the function that stands there.

A point is passed when its function is entered or left; the nth time, the process sends itself SIGKILL.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import signal
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Point(NamedTuple):
    """`place`: "module:function" or "module:Class.method"; `of`: what one of its texts and paths must hold."""

    means: str
    place: str
    when: Literal["before", "after"] = "before"
    nth: int = 1
    of: str = ""


COORDINATOR: dict[str, Point] = {
    "job open": Point("the sites are invited", "atoll.remote.hub:Hub.open", "after"),
    "hello": Point("a second site has called, and is not welcomed yet", "atoll.remote.floor:Floor.came", nth=2),
    "cohort noted": Point("who is asked is on disk, and nobody is asked", "atoll.deploy.cohort:Cohort.note", "after"),
    "model half written": Point("a model for the sites is not whole on disk", "os:replace", of="hub/trees"),
    "half offered": Point("one client is asked, and the others are not", "atoll.remote.desk:Task.offer", nth=2),
    "model half sent": Point("a site has a part of the model", "atoll.remote.desk:Task.at", "after", nth=2, of="fetching"),
    "update half come": Point("a part of an update is on disk", "atoll.remote.spool:Part.add", "after", nth=2),
    "update unchecked": Point("all bytes of an update are here, unchecked", "atoll.remote.spool:Part.finish", nth=2),
    "update whole": Point("an update is here and checked", "atoll.remote.spool:Part.finish", "after", nth=2),
    "before the journal": Point("an update is accepted, and not logged", "atoll.store.journal:FileJournal.accept", nth=2),
    "journal half written": Point("an update is not whole in the journal", "os:replace", nth=2, of="/journal/"),
    "journalled": Point("an update is logged, and not acknowledged", "atoll.store.journal:FileJournal.accept", "after", nth=2),
    "settlement unsaid": Point("that it is safe is on disk, and not said", "atoll.remote.desk:Desk.settle", "after", nth=2),
    "acknowledged": Point("the acknowledgement is on its way", "atoll.remote.hub:Hub.acknowledge", "after", nth=2),
    "confirmed": Point("a site has committed its client's memory", "atoll.remote.desk:Desk.confirm", "after"),
    "folding": Point("two updates of three are summed", "atoll.fold:Fold._add", "after", nth=2),
    "aggregating": Point("all updates are logged, and no sum is formed", "atoll.fold:Fold.finish", nth=2),
    "aggregated": Point("the sum is formed, and no step is made", "atoll.fold:Fold.finish", "after", nth=2),
    "before the checkpoint": Point("the step is made, and not kept", "atoll.store.checkpoints:save"),
    "checkpoint half written": Point("a checkpoint is not whole on disk", "os:replace", of="/checkpoints/"),
    "checkpointed": Point("the round is kept, and the next not begun", "atoll.store.checkpoints:save", "after"),
    "second checkpoint": Point("the last round is kept", "atoll.store.checkpoints:save", "after", nth=2),
    "model saved": Point("the model is written, and the sites not told", "atoll.remote.hub:Hub.close"),
    "sites told": Point("the job is ended, and not noted as finished", "atoll.store.run:Run.finish"),
}
SITE: dict[str, Point] = {
    "calling": Point("the line is open, and nothing is said", "atoll.remote.errands:Line.live"),
    "invited": Point("the job is described, and not built", "atoll.deploy.site:Site._join"),
    "consented": Point("the site takes part", "atoll.deploy.site:Site._join", "after"),
    "offered": Point("it is asked, and has not begun to fetch", "atoll.remote.bench:Bench.offered", nth=2),
    "model half come": Point("a part of the model is on disk", "atoll.remote.spool:Part.add", "after", nth=2),
    "model unchecked": Point("all bytes of the model are here, unchecked", "atoll.remote.spool:Part.finish"),
    "model whole": Point("the model is here, and not read", "atoll.remote.spool:Part.finish", "after"),
    "training": Point("in the middle of a client's steps", "atoll.deploy.site:Site._told", nth=7),
    "before the proposal": Point("trained, and nothing kept", "atoll.store.memories:FileMemories.propose", nth=2),
    "memory half written": Point("the proposed memory is not whole", "os:replace", nth=2, of=".pending"),
    "proposed": Point("the memory is proposed, and no answer kept", "atoll.store.memories:FileMemories.propose", "after", nth=2),
    "answer without its letter": Point("a frame, and not what it answers", "os:replace", of=".json"),
    "answered": Point("the answer is on disk, and not sent", "atoll.remote.outbox:Outbox.put", "after", nth=2),
    "update half sent": Point("the coordinator has a part of an update", "atoll.remote.outbox:Outbox.chunk", nth=3),
    "acknowledgement heard": Point("that it is safe is heard, and not kept", "atoll.remote.bench:Bench.settled"),
    "before the commit": Point("the memory is still the old one", "atoll.store.memories:FileMemories.commit", nth=2),
    "committed": Point("the memory is the new one, the answer kept", "atoll.store.memories:FileMemories.commit", "after", nth=2),
    "confirming": Point("the answer is dropped, the coordinator not told", "atoll.remote.outbox:Outbox.drop", "after", nth=2),
    "last commit": Point("the last round's memory is the old one", "atoll.store.memories:FileMemories.commit", nth=4),
    "job ended": Point("the end of the job is heard", "atoll.remote.bench:Bench.closed"),
}
POINTS = {f"{side}: {name}": point for side, table in (("serve", COORDINATOR), ("join", SITE)) for name, point in table.items()}


def arm(point: Point) -> None:
    """Wrap the function at which this process is to die."""
    module, _, path = point.place.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    real, passed = getattr(owner, name), itertools.count(1)

    def pass_by(when: str, arguments: tuple[Any, ...]) -> None:
        named = not point.of or any(point.of in str(each) for each in arguments if isinstance(each, str | Path))
        if when == point.when and named and next(passed) == point.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    async def waited(*arguments: Any, **more: Any) -> Any:
        pass_by("before", arguments)
        found = await real(*arguments, **more)
        pass_by("after", arguments)
        return found

    def called(*arguments: Any, **more: Any) -> Any:
        pass_by("before", arguments)
        found = real(*arguments, **more)
        pass_by("after", arguments)
        return found

    setattr(owner, name, waited if inspect.iscoroutinefunction(real) else called)
