"""The values that cross between server and client; `atoll.interfaces` moves them. Nothing here does I/O.

Four flows meet in these types: a `Request` from the algorithm becomes one `Assignment` a client; a client
answers with an `Update` (or the engine says `Failure`); an `Aggregator` folds updates into one tree; the
algorithm receives it as `Reduced`. `atoll.round` is the one place where all four are seen at work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
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
    clients: int = 1  # that it speaks for: more where a relay has averaged a region; never taken from a wire as it is


class Failure(NamedTuple):
    """What an engine says of a client that will not answer."""

    round: int
    client: ClientId
    work: str
    kind: str  # "error" | "not_finite" | "no_data" | "lost" | "refused" | "expired" | "invalid"
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
    weights: Literal["examples", "uniform"] | None = None  # what this mean, or sum, counts a client by; None: it is neither


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
    decode: Callable[[Update], Update] | None = None  # from what crossed the network to what `like` and `reduce` know
    plain: Tree | None = None  # names and shapes of an update as no transform has encoded it; None: as it crosses the network
    plain_for: Callable[[ClientId], Tree] | None = None  # the same of what `tree_for` gives
    by_client: bool = False  # `tree_for` differs by who is asked: nobody can answer for several clients


class Reduced(NamedTuple):
    """Driver to algorithm: the reduced tree, and who was heard, in the canonical order."""

    tree: Tree
    clients: Sequence[ClientId]
    metrics: Metrics  # means over clients, weighted by Update.weight
    each: Sequence[Metrics] = ()  # what each of `clients` told, in their order
    heads: int = 0  # clients behind the tree, each of a region counted
    weight: float = 0.0  # of them all: the sum of Update.weight


class Batching(NamedTuple):
    """Which of a client's examples a fold reads, and in what portions."""

    split: str = "train"
    batch_size: int | None = None  # None: all examples in one batch
    epochs: int = 1
    steps: int | None = None  # None: `epochs` passes; else exactly this many batches, reshuffled as they run out
    shuffle: bool = False
    keep: bool = False  # the client goes on where it stopped: `atoll.data.cursor`, and its optimiser's state with it


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


# What a fold sends: y - w; more or other than that; a transform's code; a few scalars, which nothing can make smaller.
Payload: TypeAlias = Literal["update", "composite", "encoded", "scalars"]


class Local(NamedTuple, Generic[C]):
    """Client half: a fold over batches, so that engines may loop, trace, stack or shard it.

    `step` may update its carry in place: nothing holds the old one.
    """

    init: Callable[[Assignment, Tree], C]  # (.., this client's memory) -> carry
    step: Callable[[C, Batch], C]
    final: Callable[[Assignment, C, Seen], tuple[Update, Tree]]  # -> (update, this client's new memory)
    batching: Batching = Batching()
    descent: Descent | None = None  # None: the fold has no gradient that an algorithm could correct
    payload: Payload = "update"
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
    """What a transform promises; `transforms.compose` refuses what does not go together."""

    linear: bool = False  # encode(a) + encode(b) = encode(a + b) under one broadcast, up to rounding: a secure sum may add it
    unbiased: bool = False  # the mean over seeds of what the server gets is what was encoded
    memory: bool = False  # keeps something at the client between rounds
    bounds_norm: bool = False
    shared: bool = False  # needs parameters, such as a seed, that the server draws for all clients of a round
    entropy: bool = False  # what it sends are entropy-coded bytes: a link after it finds nothing to work on
    feedback: bool = False  # what it leaves out of one round is added to a later one
    reference: bool = False  # encodes a tree against one that both ends hold, which is so of a model, not of an update


class Transform(NamedTuple, Generic[S]):
    """One mechanism, both halves side by side.

    `decode` raises TreeError where the update is not one that `encode` makes; its second argument is what the
    algorithm expects (names and shapes), None where it does not say. None: the sum suffices, and `finish` is given it.
    """

    name: str
    init: Callable[[Tree], S]
    broadcast: Callable[[S], Tree]  # server -> clients, beside the model
    encode: Callable[[Assignment, Tree, Tree, Update], tuple[Update, Tree]]  # (.., broadcast, memory, update)
    decode: Callable[[Update, Tree | None], Update] | None  # server, one update
    finish: Callable[[S, Reduced], tuple[Tree, S]]  # server, after the reduce
    properties: Properties = Properties()
    form: Callable[[Tree], Tree] | None = None  # without decode: names and shapes that encode makes of a tree; None: the same
    links: Sequence[Transform[Any]] = ()  # what it is made of, in their order: the rules of composition look inside


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


class Event(NamedTuple):
    """Something that happened in a run."""

    kind: str  # "update" | "failure" | "late" | "cancelled" | "reduced" | "round"
    round: int
    work: str = ""
    client: ClientId | None = None
    metrics: Metrics = {}  # noqa: RUF012
    text: str = ""
