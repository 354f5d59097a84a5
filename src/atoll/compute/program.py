"""A step captured once a model and shape, and kept: recorded, held to the eager step twice, and from then on replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from atoll.compute.passes import apart, clean, simplify
from atoll.compute.record import Recorded, UntraceableError, record
from atoll.compute.source import Source, compile_source
from atoll.types import Batch, Local

TOLERANCE = 1e-2  # of a step's change: a wrong graph is off by its whole size, rounding by a millionth of it
log = logging.getLogger("atoll.compute")


class Program:
    """Straight-line code of one step, for states and batches of one signature."""

    def __init__(self, recorded: Recorded, state: int) -> None:
        simplify(recorded)
        self.source: Source = compile_source(recorded, state)
        self.random, self.trusted = recorded.random, False
        self._constants = recorded.constants
        with torch.inference_mode():
            self._once = self.source.once(self._constants)

    def bind(self, state: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
        """The step over these very tensors, which it changes in place: a function of a batch's tensors."""
        step, constants, once = self.source.step, self._constants, self._once
        with torch.inference_mode():
            bound = self.source.bind(state, constants, once)

        def run(batch: Sequence[Tensor]) -> None:
            with torch.inference_mode():
                step(state, batch, constants, once, bound)

        return run


class Programs:
    """Programs by fold, learning rate and shapes; `None` where there can't be one, which was said once."""

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Local[Any], Program | None]] = {}
        self._graphs: dict[Any, Recorded] = {}
        self._said: set[tuple[int, str]] = set()

    def step(self, local: Local[Any], carry: Any, state: list[Tensor], batch: Batch) -> Program | None:
        """One eager step of the carry, or one by a program that is not trusted yet; the program when it is trusted."""
        key = self.key(local, carry, state, batch)
        known = self._kept.get(key)
        if known is None:
            self._kept[key] = (local, self._captured(key, local, carry, state, batch))
            return None
        program = known[1]
        if program is None:
            local.step(carry, batch)
        elif program.trusted:
            return program
        else:
            self._trust(key, local, carry, state, batch, program)
        return None

    def key(self, local: Local[Any], carry: Any, state: Sequence[Tensor], batch: Batch) -> Any:
        """What a program depends on: the fold, its constants, the signature of what it reads."""
        assert local.captured is not None
        return id(local.step), local.captured(carry).constants, signature(state), tuple(batch), signature(batch.values())

    def graph(self, key: Any) -> Recorded | None:
        """The recorded step behind a program, cleaned and not fused: what vmap can batch."""
        return self._graphs.get(key)

    def _captured(self, key: Any, local: Local[Any], carry: Any, state: list[Tensor], batch: Batch) -> Program | None:
        """Record an eager step, then do it again by the program: the carry has made one step, whichever is right."""
        reads = local.captured
        assert reads is not None
        before, draws = [x.clone() for x in state], torch.default_generator.get_state()
        try:
            recorded = record(lambda: local.step(carry, batch), [*reads(carry).tensors, *batch.values()])
        except UntraceableError as error:
            self._restore(state, before, draws)
            self.say(local, str(error))
            local.step(carry, batch)
            return None
        wanted = [x.clone() for x in state]
        apart(recorded.graph)
        clean(recorded.graph)
        self._graphs[key] = recorded._replace(graph=_copied(recorded.graph))
        program = Program(recorded, len(state))
        self._restore(state, before, draws)
        try:
            program.bind(state)(list(batch.values()))
            right = close(before, wanted, state)
        except (RuntimeError, TypeError, ValueError) as error:
            self.say(local, f"its graph could not be run again ({str(error).partition(chr(10))[0]})")
            right = False
        else:
            if not right:
                self.say(local, "its graph did not give the step's own result")
        if not right:
            _copy(state, wanted)
        return program if right else None

    def _trust(self, key: Any, local: Local[Any], carry: Any, state: list[Tensor], batch: Batch, program: Program) -> None:
        """Compare on a second batch: what depended on the first one's values in a way that no operation shows is found."""
        before, draws = [x.clone() for x in state], torch.default_generator.get_state()
        program.bind(state)(list(batch.values()))
        found = [x.clone() for x in state]
        self._restore(state, before, draws)
        local.step(carry, batch)
        if not all(bool(torch.isfinite(x).all()) for x in state):
            return  # a diverged client says nothing of its program: the next batch will
        if close(before, state, found):
            program.trusted = True
            _copy(state, found)  # so that no step's bits depend on which one was the first in this process
        else:
            self.say(local, "its graph holds for one batch and not for the next: its Python depends on the data")
            self._kept[key] = (local, None)

    def _restore(self, state: list[Tensor], before: list[Tensor], draws: Tensor) -> None:
        _copy(state, before)
        torch.default_generator.set_state(draws)

    def say(self, local: Local[Any], why: str, instead: str = "a local step is computed eagerly") -> None:
        """Once a fold and reason."""
        if (id(local.step), why) not in self._said:
            self._said.add((id(local.step), why))
            log.warning("%s: %s", instead, why)


def signature(tensors: Any) -> tuple[Any, ...]:
    """Shapes, dtypes and devices.

    >>> signature([torch.zeros(2, 3)])
    ((torch.Size([2, 3]), torch.float32, device(type='cpu')),)
    """
    return tuple((x.shape, x.dtype, x.device) for x in tensors)


def close(before: Sequence[Tensor], wanted: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Is what was found as far from what was before as it should be, tensor by tensor?

    >>> one = torch.ones(2)
    >>> close([one], [one + 0.1], [one + 0.1]), close([one], [one + 0.1], [one])
    (True, False)
    """
    for was, want, is_ in zip(before, wanted, found, strict=True):
        if not torch.is_floating_point(want):
            if not torch.equal(want, is_):
                return False
            continue
        moved = torch.linalg.vector_norm((want - was).float())
        size = torch.linalg.vector_norm(want.float())
        off = torch.linalg.vector_norm((want - is_).float())
        if not bool(off <= TOLERANCE * moved + 1e-5 * size + 1e-8) and bool(torch.isfinite(want).all()):
            return False
    return True


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for x, value in zip(into, values, strict=True):
            x.copy_(value)


def _copied(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    copy.graph_copy(graph, {})
    return copy
