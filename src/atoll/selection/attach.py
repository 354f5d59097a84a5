"""Attach a rule of client selection to an algorithm: it reorders the candidates before a round and learns from the answers.

The driver gives an algorithm every client that is idle and available, in a random order, and asks the first so many; a
rule changes that order and nothing else. What it learns from are the metrics that clients tell beside their updates: a
secure sum that hides them hides them from the rule too, and leaves `uniform` and `fair`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from atoll.aggregators.mean import mean
from atoll.errors import ConfigError
from atoll.policy import Policy
from atoll.selection.rule import Call, Selection, Told, cohort, refuse
from atoll.selection.unbiased import unbiased, weighs
from atoll.types import Algorithm, Assignment, ClientId, Local, Metrics, Reduced, Request, Seen, Tree, Update

PROBE = "probe"


class Selected(NamedTuple):
    """The wrapped algorithm's state, the rule's, and the rounds that are finished."""

    inner: Any
    rule: Any
    round: int


def with_selection(
    inner: Algorithm[Any], rule: Selection[Any], policy: Policy, clients: Sequence[ClientId], work: str = "train"
) -> Algorithm[Selected]:
    """The algorithm, its candidates in the order of the rule, which learns from the answers to `work`.

    `policy` and `clients` are those of the run: they say how many are asked. Attach it before transforms and
    evaluation. Raises ConfigError for what does not go together, here or, where the algorithm's mean is no sum, in `init`.

    >>> from atoll.algorithms.fedavg import fedavg
    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.policy import synchronous
    >>> from atoll.selection.power_of_choice import power_of_choice
    >>> from atoll.tasks.regression import regression
    >>> task = regression(linear(3, 1))
    >>> algorithm = with_selection(fedavg(sgd(task)), power_of_choice(task), synchronous(1), ["a", "b"])
    >>> sorted(algorithm.local)
    ['probe', 'train']
    """
    refuse(rule.name, rule.unbiased, policy)
    if work not in inner.local or (rule.probe and PROBE in inner.local):
        raise ConfigError(f"selection {rule.name!r} needs an algorithm with work {work!r} and none of the name {PROBE!r}")
    wanted = cohort(policy, len(clients))
    rule.order(rule.init(), Call(0, list(clients), wanted))  # what it refuses, it refuses now

    def init(w: Tree) -> Selected:
        state = Selected(inner.init(w), rule.init(), 0)
        if rule.unbiased:
            _has_a_sum(_first(inner, state.inner, clients), rule.name)
        return state

    def round(state: Selected, candidates: Sequence[ClientId]) -> Generator[Request, Reduced, Selected]:
        call = Call(state.round, candidates, wanted)
        if rule.unbiased:
            call = call._replace(weighted=weighs(_first(inner, state.inner, candidates).reduce))
        if rule.probe and candidates:
            asked, params = rule.probe.clients(call), inner.params(state.inner)
            judged = yield Request(PROBE, asked, lambda _: params, mean(), True, len(asked), {})
            call = call._replace(losses={c: m["loss"] for c, m in zip(judged.clients, judged.each, strict=True)})
        chosen = rule.order(state.rule, call)
        flow, after = inner.round(state.inner, chosen.clients), chosen.state
        try:
            request = next(flow)
            while True:
                if chosen.shares:
                    request = request._replace(reduce=unbiased(request.reduce, chosen.shares))
                reduced = yield request
                if request.work == work:
                    first = () if policy.refill else tuple(islice(chosen.clients, wanted))
                    after = rule.observe(after, _checked(Told(state.round, first, reduced.clients, reduced.each), rule))
                request = flow.send(reduced)
        except StopIteration as done:
            return Selected(done.value, after, state.round + 1)

    locals_ = dict(inner.local)
    if rule.measure:
        locals_[work] = _measured(inner.local[work], rule.measure)
    if rule.probe:
        locals_[PROBE] = rule.probe.local
    return Algorithm(init, round, lambda s: inner.params(s.inner), locals_)


def _first(inner: Algorithm[Any], state: Any, candidates: Sequence[ClientId]) -> Request:
    """The algorithm's first request: a value, looked at and not carried out."""
    flow = inner.round(state, candidates)
    request = next(flow)
    flow.close()
    return request


def _has_a_sum(request: Request, name: str) -> None:
    if not request.reduce.only_sum or not request.discount:
        raise ConfigError(
            f"selection {name!r} scales updates so that their mean stays unbiased, and this algorithm's aggregator is not a "
            f"plain sum or mean; use the mean, or another rule"
        )


def _checked(told: Told, rule: Selection[Any]) -> Told:
    for client, metrics in zip(told.clients, told.each, strict=True):
        if missing := sorted(rule.needs - set(metrics)):
            raise ConfigError(
                f"selection {rule.name!r} learns from {missing[0]!r}, which client {client!r} does not tell: return it from the "
                f"local work, or use uniform or fair"
            )
    return told


def _measured(local: Local[Any], measure: Any) -> Local[Any]:
    """The same fold; its update tells what the rule measures of it."""

    def final(assignment: Assignment, carry: Any, seen: Seen) -> tuple[Update, Tree]:
        update, memory = local.final(assignment, carry, seen)
        told: Metrics = {**update.metrics, **measure(update)}
        return update._replace(metrics=told), memory

    return local._replace(final=final)
