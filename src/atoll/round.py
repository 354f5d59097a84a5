"""One round, top to bottom: the server half (`run`, `ask`), then the client half (`work`). Read this file first.

An algorithm is a generator of requests. `run` gives it a cohort and drives it; `ask` turns one request into
assignments, folds the answers as they land and gives back the reduced tree; `work` is what a client does with an
assignment. Nothing here knows an implementation of Engine, Journal or Sink.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from atoll import rng
from atoll.data.cursor import moved, portions
from atoll.errors import AtollError, ConfigError, RoundError
from atoll.flight import Flight
from atoll.fold import Fold
from atoll.interfaces import Engine, Journal, Sink
from atoll.policy import Policy
from atoll.types import (
    Algorithm,
    Answer,
    Assignment,
    Batch,
    ClientId,
    Event,
    Examples,
    Failure,
    Local,
    Reduced,
    Request,
    Seen,
    Steps,
    Tree,
    Trip,
    Update,
)


class RunState(NamedTuple):
    """All that a run is between two rounds; a checkpoint holds it and nothing else."""

    round: int  # rounds finished
    algorithm: Any
    in_flight: tuple[Assignment, ...] = ()  # still at work when the round closed (asynchronous policies)
    clock_s: float = 0.0  # seconds since the first round began, on the engine's clock


class Shell(NamedTuple):
    """The outside world of a run."""

    engine: Engine
    journal: Journal
    sink: Sink


def run(
    state: RunState,
    algorithm: Algorithm[Any],
    policy: Policy,
    population: Iterable[ClientId],
    rounds: int,
    seed: int,
    shell: Shell,
) -> Iterator[RunState]:
    """Yield the state after each round; the caller checkpoints it, shows it, stops.

    Raises RoundError when a round can't be closed by the policy. The same arguments, and a journal of the open
    round, give the same bits, whatever the order of `population`.
    """
    everyone, flight, resumed = sorted(population), Flight(policy, shell.engine), state.in_flight
    began_s = shell.engine.now() - state.clock_s
    while state.round < rounds:
        shell.journal.begin(state.round)
        flight.open(shell.journal, state.round)
        flight.send(resumed)
        resumed = ()
        busy = {client for client, _ in flight.out}
        idle = shell.engine.available([client for client in everyone if client not in busy])
        cohort = [idle[i] for i in rng.permutation(len(idle), seed, "cohort", state.round).tolist()]
        flow = algorithm.round(state.algorithm, cohort)
        try:
            request = next(flow)
            while True:
                request = flow.send(ask(request, state.round, policy, flight, shell, seed))
        except StopIteration as done:
            clock_s = shell.engine.now() - began_s
            state = RunState(state.round + 1, done.value, tuple(a for a, _ in flight.out.values()), clock_s)
        shell.sink.emit(Event("round", state.round - 1, metrics={"clock_s": clock_s}))
        yield state


def ask(request: Request, now: int, policy: Policy, flight: Flight, shell: Shell, seed: int) -> Reduced:
    """Send assignments, fold updates in as they land, close when the policy says so."""
    work, waiting, whole = request.work, iter(request.clients), request.cohort is not None
    in_flight = request.cohort or policy.in_flight or len(request.clients)
    close_after = request.cohort or policy.close_after or in_flight
    until = math.inf if whole else shell.engine.now() + policy.timeout_s
    here = f"round {now + 1}, {work!r}"  # counted from 1, as a person is shown them
    fold, lost = Fold(request, policy, now, in_order=whole or not policy.continues), list[Failure]()

    def top_up(n: int) -> None:
        chosen, sent_s = list(islice(waiting, max(n, 0))), shell.engine.now()
        fold.order.extend(chosen)
        flight.send([Assignment(now, c, work, request.tree_for(c), rng.seed(seed, now, work, c), sent_s) for c in chosen])

    top_up(in_flight - flight.count(work))
    for landed, replayed in flight.answers(work, until):
        if request.fresh and landed.round != now:
            cost = flight.accept(landed)  # its slot is free
            shell.engine.refuse(landed)
            shell.sink.emit(Event("late", now, work, landed.client, cost, f"from round {landed.round}"))
            top_up(not whole)
            continue
        answer = landed if isinstance(landed, Failure) else fold.judge(landed)
        if not replayed:
            shell.journal.accept(answer)
        cost = flight.accept(answer, request)
        fold.hear(answer, shell.journal.hold)
        if isinstance(answer, Update):
            shell.sink.emit(Event("update", now, work, answer.client, {**answer.metrics, **cost, "age": now - answer.round}))
            if not replayed:
                shell.engine.acknowledge(answer)
        else:
            lost.append(answer)
            shell.sink.emit(Event("failure", now, work, answer.client, cost, f"{answer.kind}: {answer.reason}"))
            if not replayed:
                shell.engine.refuse(landed)
            if policy.on_failure == "stop":
                raise RoundError(f"{here}: the policy stops at a failure, and {_why([answer])}")
        failed = isinstance(answer, Failure)
        del landed, answer  # not held while the next one is read or made: a model less of memory
        fold.catch_up()
        if fold.heard == close_after:
            break
        if not whole and (policy.refill or failed):
            top_up(1)  # asynchronous: the next client; synchronous: somebody in the place of who was lost
    if whole or request.fresh or not policy.continues:
        for client, cost in flight.cancel(now, work):
            shell.sink.emit(Event("cancelled", now, work, client, cost))
    if fold.heard < min(policy.min_updates, close_after):
        few = f"{fold.heard} of {len(fold.order)} clients answered, and the policy's min_updates is {policy.min_updates}"
        raise RoundError(f"{here}: {few}; {_why(lost)}")
    reduced = fold.finish()
    shell.sink.emit(Event("reduced", now, work, metrics={**reduced.metrics, "heard": fold.heard, "lost": len(lost)}))
    return reduced


def loop(local: Local[Any], carry: Any, portions: Iterable[Batch]) -> tuple[Any, Seen]:
    """A client's steps, one batch after another: the reference for every other way to compute them."""
    seen = steps = 0
    for batch in portions:
        carry = local.step(carry, batch)
        seen += len(next(iter(batch.values())))
        steps += 1
    return carry, Seen(seen, steps)


def work(
    assignment: Assignment, local: Local[Any], examples: Examples, memory: Tree, through: Steps = loop
) -> tuple[Answer, Tree]:
    """Client half: the fold of one assignment over the client's examples; the answer and the new memory.

    Engines may capture, stack or shard the steps (`through`), but must agree with `loop`.
    """
    started, trip = time.perf_counter(), Trip(assignment, local, examples, memory)
    try:
        with rng.seeded(assignment.seed):
            carry, seen = through(local, local.init(assignment, memory), portions(trip))
            return ended(trip, carry, seen, time.perf_counter() - started)
    except (ConfigError, MemoryError):
        raise  # the federation is built wrongly, or the machine is too small: no client is to blame
    except Exception as error:  # a client's own code or data may fail in any way; the run outlives it
        named = str(error) if isinstance(error, AtollError) else f"{type(error).__name__}: {error}"
        return _failed(assignment, "error", named.partition("\n")[0]), memory


def ended(trip: Trip, carry: Any, seen: Seen, seconds: float) -> tuple[Answer, Tree]:
    """A client's fold at its end: the answer and the new memory."""
    if not seen.steps:
        why = f"it holds no examples in its split {trip.local.batching.split!r}"
        return _failed(trip.assignment, "no_data", why), trip.memory
    update, memory = trip.local.final(trip.assignment, carry, seen)
    cost = {"seconds": seconds, "examples": seen.examples, "steps": seen.steps}
    return update._replace(metrics={**update.metrics, **cost}), moved(trip, memory, seen.steps)


def _why(lost: Sequence[Failure]) -> str:
    told = "; ".join(f"client {f.client} failed ({f.kind}: {f.reason})" for f in lost[:3])
    return told + (f"; and {len(lost) - 3} more" if len(lost) > 3 else "") if lost else "out of time or of clients"


def _failed(x: Assignment, kind: str, reason: str) -> Failure:
    return Failure(x.round, x.client, x.work, kind, reason)
