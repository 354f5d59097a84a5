"""Updates folded into one tree in the order in which clients were asked, whatever the order in which they answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from atoll import tree
from atoll.errors import TreeError
from atoll.policy import Policy, constant
from atoll.types import Answer, ClientId, Failure, Metrics, Reduced, Request, Tree, Update

MOST_WEIGHT = 2.0**53  # examples: above, float64 does not count them one by one


class Fold:
    """One request's reduction. An update that comes before its turn is held, and read back when its turn comes.

    With `in_order=False` (asynchronous policies) the order of arrival is the order.
    """

    def __init__(self, request: Request, policy: Policy, now: int, in_order: bool) -> None:
        self.order: list[ClientId] = []  # as asked: the canonical order
        self.heard = 0
        self._like = request.like  # names and shapes that every update must have; if not given, the first one's
        self._decode = request.decode
        self._plain: Update | None = None  # what was last judged, decoded: most likely the next to be folded
        self._reduce, self._now, self._in_order = request.reduce, now, in_order
        self._staleness = policy.staleness if request.discount else constant
        self._acc, self._early = request.reduce.init(), dict[ClientId, Callable[[], Update] | None]()
        self._next, self._clients, self._each = 0, list[ClientId](), list[Metrics]()
        self._metrics = dict[str, tuple[float, float]]()
        self._heads, self._weight = 0, 0.0

    def judge(self, update: Update) -> Answer:
        """The update as it came, or the failure that it is: it does not decode, or see `verdict`."""
        try:
            plain = self._plainly(update)
        except TreeError as error:
            return _failed(update, "invalid", str(error))
        found = verdict(plain, self._like)
        if isinstance(found, Failure):
            return found
        if self._like is None and plain.tree:
            self._like = tree.map(lambda x: x.new_empty(x.shape, device="meta"), plain.tree)
        self._plain = plain
        return update

    def hear(self, answer: Answer, hold: Callable[[Update], Callable[[], Update]]) -> None:
        """Fold an answer, the one judged last, if it is its turn; hold it until then if not."""
        plain, self._plain = self._plain, None
        self.heard += isinstance(answer, Update)
        if not self._in_order:
            self._add(plain or answer)
        elif self._next < len(self.order) and self.order[self._next] == answer.client:
            self._next += 1
            self._add(plain or answer)
        else:
            self._early[answer.client] = hold(answer) if isinstance(answer, Update) else None

    def finish(self) -> Reduced:
        """Fold what is still held, passing over who was not heard."""
        while self._next < len(self.order):
            self.catch_up()
            self._next += 1
        metrics = {name: total / weight for name, (total, weight) in self._metrics.items() if weight > 0}
        return Reduced(self._reduce.finish(self._acc), self._clients, metrics, self._each, self._heads, self._weight)

    def catch_up(self) -> None:
        """Fold those held whose turn it is by now; apart from `hear`, so that its update can be let go before."""
        while self._next < len(self.order) and self.order[self._next] in self._early:
            load = self._early.pop(self.order[self._next])
            self._next += 1
            if load is not None:
                self._add(self._plainly(load()))

    def _plainly(self, update: Update) -> Update:
        return self._decode(update)._replace(checked=False) if self._decode else update

    def _add(self, answer: Answer) -> None:
        if isinstance(answer, Failure):
            return
        age = self._now - answer.round
        update = answer._replace(age=age, factor=self._staleness(age))
        self._acc = self._reduce.add(self._acc, update)
        self._clients.append(update.client)
        self._heads, self._weight = self._heads + update.clients, self._weight + update.weight
        self._each.append(update.metrics)
        for name, value in update.metrics.items():
            total, weight = self._metrics.get(name, (0.0, 0.0))
            self._metrics[name] = (total + value * update.weight, weight + update.weight)


def verdict(update: Update, like: Tree | None) -> Answer:
    """The update, or the failure that it is: not finite, a bad weight, or not the tree that the others sent."""
    try:
        if not 0 < update.weight <= MOST_WEIGHT:
            return _failed(update, "invalid", f"its weight is {update.weight}; a weight is above 0 and at most 2^53")
        finite = update.checked or tree.finite(update.tree)  # a pass over memory that another core wrote is dear
        if not finite or not all(math.isfinite(value) for value in update.metrics.values()):
            return _failed(update, "not_finite", "its loss or its update is NaN or infinite; lower the learning rate or clip")
        if like is not None:
            tree.agree(like, update.tree)
            _same_kinds(like, update.tree)
    except TreeError as error:
        return _failed(update, "invalid", str(error))
    return update


def _same_kinds(like: Tree, found: Tree) -> None:
    """No whole numbers where there are others, and none wider: the sum would become so, and with it the model of everybody."""
    if isinstance(like, tree.Flat) and isinstance(found, tree.Flat) and like.buffer.dtype == found.buffer.dtype:
        return
    for name, x in like.items():  # where `like` counts, as of what a mask leaves, a share may come
        y = found[name]
        wider = y.dtype == torch.float64 != x.dtype
        if wider or (x.is_floating_point() and not y.is_floating_point()):
            raise TreeError(f"trees disagree on {name}: {x.dtype} against {y.dtype}")


def _failed(update: Update, kind: str, reason: str) -> Failure:
    return Failure(update.round, update.client, update.work, kind, reason)
