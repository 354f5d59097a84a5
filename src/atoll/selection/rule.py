"""What a rule of client selection is: a value made of pure functions, which `with_selection` attaches to an algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from atoll.errors import ConfigError
from atoll.policy import Policy
from atoll.types import ClientId, Local, Metrics, Update

S = TypeVar("S")  # what a rule remembers: a durable value, of clients that were seen alone


class Call(NamedTuple):
    """A round that wants clients."""

    round: int  # rounds that are finished
    candidates: Sequence[ClientId]  # idle and available, in a random order by the job's seed
    wanted: int  # the first so many are asked; who comes after them stands in for who fails
    losses: Mapping[ClientId, float] = {}  # of those that were probed
    weighted: bool = True  # the algorithm's mean goes by Update.weight, not by heads (told to unbiased rules)


class Shares(NamedTuple):
    """How the updates of an uneven draw are scaled, so that their mean estimates that over all candidates."""

    factors: Mapping[ClientId, float]  # wanted / (candidates * inclusion probability)
    typical_weight: float  # the mean of Update.weight over clients


class Chosen(NamedTuple, Generic[S]):
    """A rule's answer to a call."""

    clients: Sequence[ClientId]  # candidates, in the order in which they are asked
    state: S
    shares: Shares | None = None  # None: the mean stays as it is


class Told(NamedTuple):
    """What a round of training taught."""

    round: int
    asked: Sequence[ClientId]  # at least these; empty where the policy refills
    clients: Sequence[ClientId]  # who was heard
    each: Sequence[Metrics]  # what each of `clients` told, in their order


class Probe(NamedTuple):
    """Work that some candidates do before the rule chooses."""

    local: Local[Any]
    clients: Callable[[Call], Sequence[ClientId]]


class Selection(NamedTuple, Generic[S]):
    """A rule of client selection. Its functions are pure; randomness comes from `atoll.rng` alone."""

    name: str
    init: Callable[[], S]
    order: Callable[[S, Call], Chosen[S]]
    observe: Callable[[S, Told], S]
    needs: frozenset[str] = frozenset()  # metrics that every client must tell
    probe: Probe | None = None
    measure: Callable[[Update], Metrics] | None = None  # what a client tells besides, of its own update
    unbiased: bool = False  # it gives shares: every client that is asked has to be waited for


def tell(told: Told, *names: str) -> dict[ClientId, tuple[float, ...]]:
    """These metrics of each client that was heard.

    >>> tell(Told(0, ["a"], ["a"], [{"loss": 2.0, "seconds": 1.5}]), "seconds", "loss")
    {'a': (1.5, 2.0)}
    """
    return {c: tuple(float(m[name]) for name in names) for c, m in zip(told.clients, told.each, strict=True)}


def cohort(policy: Policy, clients: int) -> int:
    """How many are asked in a round: under a policy that refills, as many as it closes with.

    >>> cohort(Policy(13, 10), 100), cohort(Policy(30, 10, refill=True), 100), cohort(Policy(), 100)
    (13, 10, 100)
    """
    return min((policy.close_after if policy.refill else policy.in_flight) or clients, clients)


def refuse(name: str, unbiased: bool, policy: Policy) -> None:
    """What a rule and a policy can't do together.

    >>> refuse("importance", True, Policy(13, 10))
    Traceback (most recent call last):
    atoll.errors.ConfigError: selection 'importance' weighs each update by its chance of being drawn, so every client ...
    """
    whole = policy.close_after in (None, policy.in_flight) and not policy.continues and policy.timeout_s == float("inf")
    if unbiased and not whole:
        raise ConfigError(
            f"selection {name!r} weighs each update by its chance of being drawn, so every client that is asked has to be "
            f"waited for; use the policy synchronous, or another rule"
        )
