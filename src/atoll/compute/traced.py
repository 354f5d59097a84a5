"""One client after another, each step replayed as straight-line code: no autograd, no module, no optimiser between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from atoll.compute.cudagraph import Graphs
from atoll.compute.program import Program, Programs, signature
from atoll.interfaces import Compute
from atoll.round import loop, work
from atoll.types import Answer, Batch, Local, Seen, Tree, Trip


def traced() -> Compute:
    """Steps from captured programs; where a fold can't be captured, eagerly, with a line that says why.

    >>> list(traced().run([]))
    []
    """
    return Traced()


class Traced:
    """Keeps the programs."""

    def __init__(self) -> None:
        self.programs = Programs()
        self._graphs: dict[Any, tuple[Local[Any], Graphs]] = {}  # on a GPU, by fold and shapes

    def ready(self, trip: Trip) -> int:
        return 1

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        for trip in trips:
            yield work(*trip, through=self.replay)

    def replay(self, local: Local[Any], carry: Any, portions: Iterable[Batch]) -> tuple[Any, Seen]:
        """`round.loop`, from programs."""
        if local.captured is None:
            return loop(local, carry, portions)
        state = [x.detach() for x in local.captured(carry).tensors]
        graphs = self._on_gpu(local, state)
        bound: dict[Any, Callable[[Sequence[Tensor]], None]] = {}
        examples = steps = 0
        for batch in portions:
            values = list(batch.values())
            shapes = tuple(x.shape for x in values)  # within one client nothing else of a batch differs
            if shapes not in bound:
                if graphs:
                    graphs.settle(state)
                program: Program | None = self.programs.step(local, carry, state, batch)
                if program is not None:
                    bound[shapes] = graphs.bind(program, state) if graphs else program.bind(state)
            if shapes in bound:
                bound[shapes](values)
            examples += len(values[0])
            steps += 1
        if graphs:
            graphs.settle(state)
        return carry, Seen(examples, steps)

    def _on_gpu(self, local: Local[Any], state: Sequence[Tensor]) -> Graphs | None:
        if not state or not state[0].is_cuda:
            return None
        return self._graphs.setdefault((id(local.step), signature(state)), (local, Graphs(state)))[1]
