"""What a run gives back: the model, its numbers, and the report of both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from atoll.errors import StoreError
from atoll.interfaces import Memories
from atoll.local.binding import binding
from atoll.store import machine
from atoll.store.record import Incident, Point, Record
from atoll.types import ClientId, Event, Task, Tree


class Recorder:
    """A sink that keeps everything in memory, as the runs database would.

    >>> recorder = Recorder()
    >>> recorder.emit(Event("reduced", 0, "evaluate", metrics={"loss": 0.5}))
    >>> recorder.points[0].value
    0.5
    """

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.incidents: list[Incident] = []
        self._began = time.monotonic()

    def emit(self, event: Event) -> None:
        at = time.monotonic() - self._began
        self.points += [Point(event.round, event.work, event.client, n, float(v), at) for n, v in event.metrics.items()]
        if event.text:
            self.incidents.append(Incident(event.round, event.work, event.client, event.kind, event.text, at))


class Result:
    """The end of a run. `params` are the trained tensors, by name; `metrics` the last evaluation's, by name."""

    def __init__(self, task: Task, params: Tree, recorder: Recorder, memories: Memories, about: Mapping[str, Any]) -> None:
        self.params = params
        self._task, self._recorder, self._memories, self._about = task, recorder, memories, about

    @property
    def metrics(self) -> dict[str, float]:
        """The last numbers of the last kind of evaluation that there was; of training where there was none."""
        for work in ("evaluate", "evaluate_clients", "train"):
            if found := {p.name: p.value for p in self._recorder.points if p.work == work and p.client is None}:
                return found
        return {}

    def history(self, work: str = "evaluate", name: str = "loss") -> list[tuple[int, float]]:
        """(round, value) of one number of the whole federation."""
        return [(p.round, p.value) for p in self._recorder.points if (p.work, p.name, p.client) == (work, name, None)]

    def memory(self, client: str) -> Tree:
        """What a client remembers: control variates, a personal model, residuals. Only in simulation."""
        return self._memories.get(ClientId(client))

    def module(self) -> nn.Module:
        """The task's module with the trained tensors in it."""
        bound, module = binding(self._task.module), self._task.module
        bound.restore()
        for name, own in bound.state().items():
            own.copy_(self.params[name])
        return module.eval()

    def save(self, folder: str | Path) -> Path:
        """Write the trained model: an adapter or a pretrained model in its own format, else model.safetensors.

        Raises StoreError where the folder can't be written.
        """
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            if self._task.save is not None:
                self._task.save(self.params, str(target))
            else:
                # Views of one buffer share storage, which safetensors refuses to store twice: a copy each.
                save_file({name: x.clone() for name, x in self.params.items()}, target / "model.safetensors")
        except OSError as error:
            raise StoreError(
                f"the model can't be written to {target}: {error.strerror or error}; choose another folder"
            ) from error
        return target

    def record(self) -> Record:
        """The run as the runs database would hold it, for reports and comparisons."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        about = self._about
        return Record(
            id=about["name"],
            name=about["name"],
            status="finished",
            seed=about["seed"],
            rounds=about["rounds"],
            config=about,
            versions=machine.versions(),
            environment=machine.environment(),
            created=now,
            started=None,
            finished=now,
            error="",
            folder="",
            series=tuple(self._recorder.points),
            incidents=tuple(self._recorder.incidents),
        )

    def report(self, path: str | Path) -> Path:
        """Write the report of the run, one HTML file that needs nothing beside it."""
        from atoll.report.page import render

        target = Path(path)
        try:
            target.write_text(render(self.record()), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"the report can't be written to {target}: {error.strerror or error}") from error
        return target
