"""A federation in Python: a task, data, an algorithm, and everything else with a default. What a job file describes.

task -> Local -> Algorithm -> pipe of transforms -> evaluation -> rounds over an engine, kept in a run
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from atoll import tree
from atoll.algorithms.evaluation import with_evaluation
from atoll.algorithms.finetuning import with_finetuning
from atoll.compute.measured import Measured
from atoll.engines.auto import auto
from atoll.engines.processes import Processes, processes
from atoll.engines.ray import ray
from atoll.engines.serial import Serial, serial
from atoll.engines.stacked import stacked
from atoll.engines.traced import traced
from atoll.engines.virtual import Followed, Virtual
from atoll.errors import ConfigError
from atoll.fleets.fleet import Fleet
from atoll.interfaces import Engine, Journal, Memories, Sink
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.policy import Policy
from atoll.result import Recorder, Result
from atoll.round import RunState, Shell, run
from atoll.selection.attach import with_selection
from atoll.selection.rule import Selection
from atoll.store.journal import Ephemeral
from atoll.store.memories import Kept
from atoll.store.several import Several
from atoll.transforms.broadcast import with_broadcast
from atoll.transforms.pipe import pipe
from atoll.transforms.regions import with_regions
from atoll.types import HELD_OUT, Algorithm, ClientId, Dataset, Examples, Local, Task, Transform, Tree

if TYPE_CHECKING:
    from atoll.store.run import Run

ENGINES: Mapping[str, Callable[..., Engine]] = {each.__name__: each for each in (serial, traced, stacked, processes, ray, auto)}
SHARDS = 4  # the held-out examples are judged in this many parts, so that an engine can spread them


@dataclass(frozen=True)
class Federation:
    """Everything that decides a run, but how long it is.

    `policy`: who is asked and when a round closes (default: all clients, synchronous). `transforms`: attached in
    order, the last nearest the network. `broadcast`: the codec of the model on its way to clients, such as int8() (None: the
    model as it is). `engine`: "serial", "traced", "stacked", "processes", "ray", "auto", or a
    factory. `evaluate_every`: judge the global model on the held-out examples after every so many rounds (0: never);
    `evaluate_clients`: on each client's own too. `finetune`: local work by which each client adapts the final model to
    itself. `selection`: which of the idle clients are asked first (None: a random order). `fleet`: whose devices the
    clients are, in virtual time (None: as they are, in real time). `regions`: clients that stand for several, and how many.

    >>> from atoll import digits, classification, dirichlet, fedavg, mlp, sgd
    >>> task = classification(mlp(64, [32], 10))
    >>> data = digits(clients=8, partition=dirichlet(0.5))
    >>> result = Federation(task, data, fedavg(sgd(task, lr=0.1))).run(rounds=5)
    >>> result.metrics["accuracy"] > 0.6
    True
    """

    task: Task
    data: Dataset
    algorithm: Algorithm[Any]
    policy: Policy = field(default_factory=Policy)
    transforms: Sequence[Transform[Any]] = ()
    engine: str | Callable[..., Engine] = "serial"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    evaluate_every: int = 1
    evaluate_clients: bool = False
    evaluate_batch_size: int = 256
    finetune: Local[Any] | None = None
    selection: Selection[Any] | None = None
    fleet: Fleet | None = None
    broadcast: Transform[Any] | None = None
    regions: Mapping[ClientId, int] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data.clients:
            raise ConfigError(f"data set {self.data.name!r} has no clients: a federation needs one or more")
        for name, wanted in (("in_flight", self.policy.in_flight), ("close_after", self.policy.close_after)):
            if wanted is not None and wanted > len(self.data.clients) and not (name == "in_flight" and self.policy.refill):
                have = len(self.data.clients)
                raise ConfigError(
                    f"policy {name} = {wanted}, but {self.data.name} has {have} clients: ask for fewer, or make more"
                )
        if taken := [c for c in self.data.clients if c.startswith(HELD_OUT)]:
            raise ConfigError(f"client {taken[0]!r}: names that begin with {HELD_OUT!r} are the server's own; rename the client")
        if isinstance(self.engine, str) and self.engine not in ENGINES:
            raise ConfigError(f"engine = {self.engine!r}: must be one of {', '.join(ENGINES)}, or a factory")
        if self.selection is not None and self.selection.unbiased:
            self.plain().init(binding(self.task.module).state())  # the algorithm's first request shows what it averages by
        elif self.selection is not None or self.broadcast is not None or self.regions:
            self.plain()  # says what does not go together

    def run(
        self,
        rounds: int,
        store: Run | None = None,
        sinks: Sequence[Sink] = (),
        each_round: Callable[[int, Tree], None] | None = None,
    ) -> Result:
        """Train for `rounds` rounds in all, going on from the last checkpoint of `store` if it has one.

        `store`: keeps checkpoints, the journal and client memory, so that a killed run goes on to the same bits.
        `each_round(rounds done, parameters)` is called between rounds; an exception from it stops the run there.
        Raises RoundError when a round can't be closed, ConfigError for what doesn't fit together.
        """
        if rounds < 1:
            raise ConfigError(f"rounds = {rounds}: must be 1 or more")
        algorithm, recorder = self._assembled(rounds), Recorder()
        everything = Several(recorder, *([store.sink] if store else []), *sinks)
        state = RunState(0, algorithm.init(binding(self.task.module).state()))
        journal: Journal = store.journal if store else Ephemeral()
        memories: Memories = store.memories if store else Kept()
        if store and (kept := store.latest(state)):
            state = kept[1]
        engine = self._engine(algorithm, memories, store)
        computed = engine.compute if isinstance(engine, Serial | Processes) else None
        if self.fleet is not None:
            clients, lease_s = self._everybody(), self.policy.lease_s
            engine = Virtual(engine, algorithm.local, clients, self.fleet, state.clock_s, lease_s)
            journal = Followed(journal, engine)
            if store:
                store.note("fleet", self.fleet.about)
        try:
            shell = Shell(engine, journal, everything)
            for after in run(state, algorithm, self.policy, list(self.data.clients), rounds, self.seed, shell):
                state = after
                if store:
                    if isinstance(computed, Measured):
                        store.note("engine", computed.told)
                    store.checkpoint(state.round, state)
                if each_round:
                    each_round(state.round, algorithm.params(state.algorithm))
        finally:
            engine.close()
            binding(self.task.module).restore()
        about = {"name": self.data.name, "seed": self.seed, "rounds": rounds, "engine": str(self.engine), "task": self.task.about}
        about |= {"fleet": self.fleet.about} if self.fleet else {}
        return Result(self.task, tree.pack(algorithm.params(state.algorithm)), recorder, memories, about)

    def plain(self) -> Algorithm[Any]:
        """The algorithm with its selection, its transforms and its broadcast attached, without evaluation."""
        algorithm = self.algorithm
        if self.selection is not None:
            algorithm = with_selection(algorithm, self.selection, self.policy, sorted(self.data.clients))
        algorithm = pipe(algorithm, *self.transforms) if self.transforms else algorithm
        if self.broadcast is not None:
            algorithm = with_broadcast(algorithm, self.broadcast, seed=self.seed)
        return self._regional(algorithm) if self.regions else algorithm

    def _regional(self, algorithm: Algorithm[Any]) -> Algorithm[Any]:
        """The algorithm where some clients are regions, which are heard as means alone."""
        apart = {
            "a rule of selection chooses clients by what each of them tells": self.selection is not None,
            "clients are judged one by one": self.evaluate_clients,
            "clients adapt the model one by one": self.finetune is not None,
            "the algorithm's clients send what it has encoded itself": self.algorithm.local["train"].payload == "encoded",
        }
        for why in (told for told, found in apart.items() if found):
            raise ConfigError(f"regions: {why}, and of a region's clients only the mean is heard; leave out one of the two")
        return with_regions(algorithm, self.regions)

    def local(self, rounds: int) -> Mapping[str, Local[Any]]:
        """All that clients are asked to do in a run of so many rounds, by name: what a site has to know of the algorithm."""
        return self._assembled(rounds).local

    def _assembled(self, rounds: int) -> Algorithm[Any]:
        algorithm, size = self.plain(), self.evaluate_batch_size
        if self.evaluate_every and self.data.test is not None:
            shards = sorted(self._held_out())
            algorithm = with_evaluation(algorithm, evaluate(self.task, size), shards, self.evaluate_every, rounds)
        judged: list[ClientId] = []
        if self.evaluate_clients or self.finetune is not None:  # else a lazy set need not make everybody's examples
            judged = sorted(c for c, splits in self.data.clients.items() if len(splits.get("test", ())) > 0)
        if self.evaluate_clients and judged:
            every = self.evaluate_every or rounds
            algorithm = with_evaluation(algorithm, evaluate(self.task, size), judged, every, rounds, "evaluate_clients", None)
        if self.finetune is not None:
            algorithm = with_finetuning(algorithm, self.finetune, evaluate(self.task, size), judged, rounds)
        return algorithm

    def _engine(self, algorithm: Algorithm[Any], memories: Any, store: Run | None) -> Engine:
        make = ENGINES[self.engine] if isinstance(self.engine, str) else self.engine
        again = {"before": store.noted("engine")} if store and self.engine == "auto" else {}
        return make(algorithm.local, self._everybody(), memories, **self.engine_options, **again)

    def _everybody(self) -> Mapping[ClientId, Mapping[str, Examples]]:
        """The clients and, as if they were some, the server's shards; a lazy mapping stays lazy."""
        return ChainMap(self._held_out(), self.data.clients)  # type: ignore[arg-type]  # it is only read

    def _held_out(self) -> dict[ClientId, dict[str, Examples]]:
        """The server's held-out examples, in shards, as if clients held them: any engine can judge them."""
        test = self.data.test
        if test is None:
            return {}
        parts = torch.arange(len(test)).chunk(min(SHARDS, len(test)))
        return {ClientId(f"{HELD_OUT}{i}"): {"test": Share(test, part)} for i, part in enumerate(parts)}


class Share:
    """Some of the examples of a set, by index."""

    def __init__(self, whole: Examples, index: torch.Tensor) -> None:
        self._whole, self._index = whole, index

    def __len__(self) -> int:
        return len(self._index)

    def take(self, index: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return self._whole.take(self._index[index])
