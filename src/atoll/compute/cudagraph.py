"""On a GPU a step is launched as one CUDA graph: a small model's step is a hundred kernels of a few microseconds each.

A graph works on tensors that stay where they are, so a client's state is copied into them before its steps and back after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from atoll.compute.program import Program, signature

WARM = 3  # steps before a capture: kernels are chosen and workspaces made in the first


class Graphs:
    """The graphs of a fold's programs over one set of static tensors.

    >>> graphs = Graphs([torch.zeros(2)])
    >>> graphs.settle([torch.ones(2)])  # nothing has run: the state stays as it is
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._state = [torch.empty_like(x) for x in like]
        self._graphs: dict[Any, tuple[Any, list[Tensor]]] = {}  # by program and batch: the graph, its batch's place
        self._holds = False  # a client's state is here, and newer than the client's own

    def bind(self, program: Program, state: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
        """The program over the static tensors, which take the state in before the first step."""

        def run(batch: Sequence[Tensor]) -> None:
            if not self._holds:
                _copy(self._state, state)
                self._holds = True
            key = (id(program), signature(batch))
            if key not in self._graphs:
                self._graphs[key] = self._captured(program, batch)
            graph, place = self._graphs[key]
            _copy(place, batch)
            graph.replay()

        return run

    def settle(self, state: Sequence[Tensor]) -> None:
        """Give the client its state back."""
        if self._holds:
            _copy(state, self._state)
            self._holds = False

    def _captured(self, program: Program, batch: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
        place, before = [x.clone() for x in batch], [x.clone() for x in self._state]
        run, stream = program.bind(self._state), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                run(place)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(place)
        _copy(self._state, before)  # the warming steps are undone; a capture does no step
        return graph, place


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.inference_mode():
        for x, value in zip(into, values, strict=True):
            x.copy_(value)
