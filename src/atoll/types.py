"""The values that cross between server and client, and the interfaces that move them. Nothing here does I/O.

Four flows meet in these types: a `Request` from the algorithm becomes one `Assignment` a client; a client
answers with an `Update` (or the engine says `Failure`); an `Aggregator` folds updates into one tree; the
algorithm receives it as `Reduced`. `atoll.round` is the one place where all four are seen at work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NewType, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:  # the types are readable, and `atoll check` starts, without paying for torch
    from torch import Tensor, nn

S = TypeVar("S")  # server state of an algorithm or a transform
C = TypeVar("C")  # carry of a client's fold
A = TypeVar("A")  # accumulator of an aggregator

Tree: TypeAlias = "Mapping[str, Tensor]"  # flat, named as in a state_dict; the only thing that crosses the network
Batch: TypeAlias = "Mapping[str, Tensor]"  # every tensor has the examples on its first axis
Metrics: TypeAlias = Mapping[str, float]
ClientId = NewType("ClientId", str)

HELD_OUT = "held-out/"  # clients of this prefix are shards of what the server itself holds: nothing crosses the network


class Assignment(NamedTuple):
    """Server to one client: do this work from this tree."""

    round: int  # the model version that the work starts from
    client: ClientId
    work: str  # a key of Algorithm.local
    tree: Tree
    seed: int  # the only randomness the client uses
    sent_s: float = 0.0  # when, on the engine's clock


class Update(NamedTuple):
    """One client to the server. Valid until it is acknowledged: who keeps it longer copies it."""

    round: int
    client: ClientId
    work: str
    tree: Tree
    weight: float  # examples seen; exactly 1.0 under client-level privacy
    metrics: Metrics
    age: int = 0  # rounds between dispatch and receipt, set by the driver
    factor: float = 1.0  # what staleness leaves of it, set by the driver: an aggregator folds factor * tree
    checked: bool = False  # an engine that computed it itself has seen that every entry is finite; never taken from a wire
    heard_s: float = 0.0  # when it was accepted, on a clock that a replay must follow (`engines.virtual`)


class Failure(NamedTuple):
    """What an engine says of a client that will not answer."""

    round: int
    client: ClientId
    work: str
    kind: str  # "error" | "not_finite" | "no_data" | "lost" | "expired" | "invalid"
    reason: str  # one sentence for a person
    heard_s: float = 0.0  # when it was accepted, on a clock that a replay must follow


Answer: TypeAlias = Update | Failure


class Aggregator(NamedTuple, Generic[A]):
    """A commutative monoid, so it streams, shards and nests. `add` may consume the accumulator, never the update."""

    init: Callable[[], A]
    add: Callable[[A, Update], A]
    merge: Callable[[A, A], A]
    finish: Callable[[A], Tree]
    only_sum: bool  # False (median, per-update decode) is refused behind a secure sum


class Request(NamedTuple):
    """Algorithm to driver: these clients do this work, reduce it so."""

    work: str
    clients: Sequence[ClientId]  # candidates, in the canonical order
    tree_for: Callable[[ClientId], Tree]
    reduce: Aggregator[Any]
    fresh: bool = False  # True: an answer from an earlier round is dropped, never averaged
    cohort: int | None = None  # ask this many and wait for all of them; None: as the policy says
    like: Tree | None = None  # names and shapes that every answer must have; None: those of the first one heard
    discount: bool = True  # False: the algorithm weighs stale updates itself, the policy's factor does not apply


class Reduced(NamedTuple):
    """Driver to algorithm: the reduced tree, and who was heard, in the canonical order."""

    tree: Tree
    clients: Sequence[ClientId]
    metrics: Metrics  # means over clients, weighted by Update.weight
    each: Sequence[Metrics] = ()  # what each of `clients` told, in their order


class Batching(NamedTuple):
    """Which of a client's examples a fold reads, and in what portions."""

    split: str = "train"
    batch_size: int | None = None  # None: all examples in one batch
    epochs: int = 1
    steps: int | None = None  # None: `epochs` passes; else exactly this many batches, reshuffled as they run out
    shuffle: bool = False


class Seen(NamedTuple):
    """What a fold has read when it ends."""

    examples: int
    steps: int


class Correction(NamedTuple):
    """How an algorithm bends the gradient that a client descends (prox, control variates, ...).

    `gradient` works in place on the list of gradients, beside the list of parameters, in one order; `context`
    holds one list of tensors a name, in that order too, so that a captured graph sees plain tensors.
    """

    start: Callable[[Assignment, Tree], tuple[Tree, Mapping[str, Tree]]]  # (.., memory) -> (parameters, context)
    gradient: Callable[[list[Tensor], list[Tensor], Mapping[str, list[Tensor]]], None]
    final: Callable[[Finished], tuple[Tree, Tree]]  # -> (payload, new memory)
    composite: bool = False  # the payload is not y - w alone


class Finished(NamedTuple):
    """A client's descent when it ends, as `Correction.final` sees it."""

    assignment: Assignment
    delta: Tree  # y - w: trained parameters and buffers less those received
    context: Mapping[str, Tree]
    memory: Tree
    steps: int
    lr_sum: float  # sum of the learning rates of all steps: K * lr when constant
    loss: float  # mean training loss


class Descent(NamedTuple):
    """What an algorithm may ask of a fold that follows gradients."""

    optimiser: str  # "sgd" | "adamw"
    lr: float  # peak learning rate
    momentum: float
    correct: Callable[[Correction], Local[Any]]  # the same fold with its gradient corrected


class Captured(NamedTuple):
    """What a step that may be replayed as a graph reads of its carry; it gives back the same carry."""

    tensors: list[Tensor]  # read, and changed in place
    constants: tuple[float, ...]  # what else decides the arithmetic, such as the learning rate


class Local(NamedTuple, Generic[C]):
    """Client half: a fold over batches, so that engines may loop, trace, stack or shard it.

    `step` may update its carry in place: nothing holds the old one.
    """

    init: Callable[[Assignment, Tree], C]  # (.., this client's memory) -> carry
    step: Callable[[C, Batch], C]
    final: Callable[[Assignment, C, Seen], tuple[Update, Tree]]  # -> (update, this client's new memory)
    batching: Batching = Batching()
    descent: Descent | None = None  # None: the fold has no gradient that an algorithm could correct
    payload: Literal["update", "composite", "encoded"] = "update"  # y - w; more or other than that; a transform's code
    captured: Callable[[C], Captured] | None = None  # None: the step can't be a graph
    averaged: frozenset[str] = frozenset()  # buffers in the payload: averaged as they are, past any server optimiser


# How a carry goes through a client's batches, and what was read on the way.
Steps: TypeAlias = Callable[["Local[Any]", Any, Iterable[Batch]], tuple[Any, Seen]]


class Algorithm(NamedTuple, Generic[S]):
    """Server half and the local work it asks for; closed under wrapping."""

    init: Callable[[Tree], S]
    round: Callable[[S, Sequence[ClientId]], Generator[Request, Reduced, S]]
    params: Callable[[S], Tree]
    local: Mapping[str, Local[Any]]


class Properties(NamedTuple):
    """What a transform promises; `pipe` and the secure sum refuse what does not compose."""

    linear: bool = False  # decode(sum of encodes) = sum of what was encoded, up to rounding
    unbiased: bool = False
    memory: bool = False  # keeps something at the client between rounds
    bounds_norm: bool = False


class Transform(NamedTuple, Generic[S]):
    """One mechanism, both halves side by side."""

    name: str
    init: Callable[[Tree], S]
    broadcast: Callable[[S], Tree]  # server -> clients, beside the model
    encode: Callable[[Assignment, Tree, Tree, Update], tuple[Update, Tree]]  # (.., broadcast, memory, update)
    decode: Callable[[Update], Update] | None  # server, one update; None: the sum suffices
    finish: Callable[[S, Reduced], tuple[Tree, S]]  # server, after the reduce
    properties: Properties = Properties()


@dataclass(frozen=True, slots=True)
class Task:
    """A model, what it is trained to do, and how it is judged.

    `loss` and each of `metrics` map (outputs, batch) to a 0-d tensor, the mean over the batch; `count` says over
    how many units (examples, tokens) that mean was taken, so that evaluation weights it rightly. Parameters with
    `requires_grad=False` are the frozen base: held once, never sent.
    """

    module: nn.Module
    loss: Callable[[Any, Batch], Tensor]
    forward: Callable[[nn.Module, Batch], Any]
    metrics: Mapping[str, Callable[[Any, Batch], Tensor]] = field(default_factory=dict)
    count: Callable[[Batch], int] = lambda batch: len(next(iter(batch.values())))
    save: Callable[[Tree, str], None] | None = None  # (parameters, folder); None: one safetensors file
    about: str = ""  # one line for the report


class Examples(Protocol):
    """One client's examples of one split: random access by index, so a lazy or memory-mapped set fits."""

    def __len__(self) -> int: ...
    def take(self, index: Tensor) -> Batch: ...  # index: int64 (n,) -> tensors with n on the first axis


class Dataset(NamedTuple):
    """A federated data set: who holds what, and what the server holds out."""

    name: str
    clients: Mapping[ClientId, Mapping[str, Examples]]  # split ("train", "test") -> examples
    test: Examples | None  # held out by the server, seen by no client
    about: Mapping[str, Any] = {}  # source, licence, label names, units, ...


class Trip(NamedTuple):
    """One client's work on one assignment, with all that it needs."""

    assignment: Assignment
    local: Local[Any]
    examples: Examples
    memory: Tree


class Compute(Protocol):
    """How an engine computes trips: one by one as `atoll.round.work` does, from a captured program, several as one."""

    def ready(self, trip: Trip) -> int:
        """Do, once, what serves all trips like this one; how many of them to give at once."""
        ...

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        """An answer and the client's new memory for each trip, in their order; the trips are of one work."""
        ...


class Engine(Protocol):
    """Where client work runs: in this process, in resident processes, on a Ray cluster, in virtual time.

    For every assignment submitted, and not cancelled, exactly one answer comes out of `results`.
    """

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        """Who of these could start work now, in their order; waits, on the engine's clock, until somebody can."""
        ...

    def submit(self, assignments: Iterable[Assignment]) -> None: ...
    def results(self, timeout_s: float) -> Iterator[Answer]:
        """Answers as they land. Ends when nothing is outstanding or `timeout_s` has passed."""
        ...

    def acknowledge(self, update: Update) -> None:
        """The update is safe: commit the client memory that belongs to it and free its buffers."""
        ...

    def refuse(self, answer: Answer) -> None:
        """The answer is not wanted: drop the client memory that belongs to it and free its buffers."""
        ...

    def cancel(self, round: int, work: str) -> None:
        """Forget what is still outstanding of this work, client memory included."""
        ...

    def started(self, assignment: Assignment) -> bool:
        """False while it only waits for its turn: a lease does not run out in a queue."""
        ...

    def now(self) -> float:
        """Seconds on the engine's clock, virtual or real; only differences mean anything."""
        ...

    def close(self) -> None: ...


class Journal(Protocol):
    """What was answered in the open round, kept so that a killed run replays it to the same bits."""

    def begin(self, round: int) -> None:
        """Open a round: what was kept of earlier ones may go; what is kept of this one stays."""
        ...

    def accept(self, answer: Answer) -> None:
        """On return the answer survives the death of the process."""
        ...

    def hold(self, update: Update) -> Callable[[], Update]:
        """Keep an accepted update that came before its turn; the call gives it back."""
        ...

    def places(self, round: int) -> Iterator[tuple[int, ClientId, str]]:
        """(round, client, work) of what `accepted` gives, in that order, without reading a tensor."""
        ...

    def accepted(self, round: int) -> Iterator[Answer]:
        """The answers accepted while `round` was open, in the order in which they were accepted."""
        ...


class Memories(Protocol):
    """Client memory in two phases: `propose` with the update, `commit` when the server has acknowledged it."""

    def get(self, client: ClientId) -> Tree: ...
    def propose(self, client: ClientId, round: int, work: str, memory: Tree) -> None: ...
    def commit(self, client: ClientId, round: int, work: str) -> None: ...
    def discard(self, client: ClientId, round: int, work: str) -> None: ...


class Event(NamedTuple):
    """Something that happened in a run."""

    kind: str  # "update" | "failure" | "late" | "reduced" | "round"
    round: int
    work: str = ""
    client: ClientId | None = None
    metrics: Metrics = {}  # noqa: RUF012
    text: str = ""


class Sink(Protocol):
    """Where events go: a progress bar, the runs database, TensorBoard, MLflow."""

    def emit(self, event: Event) -> None: ...
