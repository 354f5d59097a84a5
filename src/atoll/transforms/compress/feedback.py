"""Error feedback: what a codec loses of one update is added to the client's next (Karimireddy et al. 2019, arXiv:1901.09847).

v = u + decay^s r        sent = C(v)        r' = v - D(C(v))

with s the rounds since r was made (Stich et al. 2018, arXiv:1809.07599, memory of sparsified SGD; decay as in SparseLoCo,
arXiv:2508.15706). A client that takes part in a share p of the rounds hands its residual in 1/p rounds late: with
partial participation the rate worsens by that factor (Fed-EF, Li and Li 2022, arXiv:2211.14292), and below a half it is off
unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

import torch

from atoll import tree
from atoll.errors import ConfigError
from atoll.transforms.chain import chain
from atoll.transforms.compose import Link, clashes
from atoll.transforms.compress.auto import OFTEN
from atoll.transforms.pipe import links_of
from atoll.types import Assignment, Properties, Transform, Tree, Update

_RESIDUAL, _ROUND = "residual/", "round"


def feedback(
    around: Sequence[Transform[Any]],
    when: Literal["auto", "always", "never"] = "auto",
    decay: float = 1.0,
    participation: float | None = None,
) -> Transform[Any]:
    """Codecs with a memory at the client of what they lost: `feedback([clip(1.0), top_k(0.01), int8()])`.

    Links that bound the norm come first inside: what they cut off is not remembered, only what the codecs lose after them.
    `when`: "auto" turns it on if `participation`, the share of all clients that a round hears, is a half or more; off, it
    is the chain of its links alone. `decay`: of the residual, for each round since it was made. The residual is kept when
    the server has acknowledged the update, and only of tensors of which something was lost.

    Raises:
        ConfigError: around is empty or does not go together, decay or participation is out of range, or "auto" does not
            know the participation.

    >>> from atoll.transforms.compress.top_k import top_k
    >>> each, u = feedback([top_k(0.5)], "always"), Update(0, "a", "train", {"w": torch.tensor([3.0, 2.0])}, 1.0, {})
    >>> start = Assignment(0, "a", "train", u.tree, 0)
    >>> sent, memory = each.encode(start, {}, {}, u)
    >>> again, _ = each.encode(start._replace(round=1), {}, memory, u._replace(round=1))
    >>> [each.decode(update, u.tree).tree["w"].tolist() for update in (sent, again)]
    [[3.0, 0.0], [0.0, 4.0]]
    """
    _judge(around, when, decay, participation)
    inside = chain("feedback", around)
    if when == "never" or (when == "auto" and participation is not None and participation < OFTEN):
        return inside
    bounds = chain("bounds", takewhile(lambda link: link.properties.bounds_norm, around))
    codec = chain("codec", list(around)[len(bounds.links) :])

    def encode(assignment: Assignment, told: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        since = update.round - int(memory[_ROUND]) if _ROUND in memory else 0
        whole = update._replace(tree=_plus(update.tree, tree.take(memory, _RESIDUAL), decay**since))
        bounded, kept = bounds.encode(assignment, told, memory, whole)  # links keep to the corners of their names
        sent, own = codec.encode(assignment, told, memory, bounded)
        got = codec.decode(sent, bounded.tree) if codec.decode is not None else sent
        lost = tree.put(_lost(bounded.tree, got.tree), _RESIDUAL)
        return sent, {**kept, **own, **lost, _ROUND: torch.tensor(update.round)}

    properties = Properties(memory=True, feedback=True, shared=inside.properties.shared, entropy=inside.properties.entropy)
    return inside._replace(encode=encode, properties=properties)


def _judge(around: Sequence[Transform[Any]], when: str, decay: float, participation: float | None) -> None:
    if not around:
        raise ConfigError("feedback around = []: give it the codecs whose losses it remembers, such as top_k")
    if when not in ("auto", "always", "never"):
        raise ConfigError(f"feedback when = {when!r}: must be auto, always or never")
    if not 0 < decay <= 1:
        raise ConfigError(f"feedback decay = {decay}: must be above 0 and at most 1")
    if participation is not None and not 0 < participation <= 1:
        raise ConfigError(f"feedback participation = {participation}: must be above 0 and at most 1")
    if when == "auto" and participation is None:
        raise ConfigError(
            'feedback when = "auto": it is not known how many of the clients a round hears; give participation = that share, '
            'or say when = "always" or "never"'
        )
    for clash in clashes([Link("feedback", frozenset({"feedback"})), *links_of(around)]):
        raise ConfigError(f"feedback: {clash.text}")


def _plus(u: Tree, owed: Tree, factor: float) -> Tree:
    """u + factor * owed, where something of that name and shape is owed: to a model that was cut otherwise, nothing is."""
    due = {name: r for name, r in owed.items() if name in u and u[name].shape == r.shape}
    if not due:
        return u
    if isinstance(u, tree.Flat) and u.buffer.dtype == torch.float32:
        whole = tree.Flat(u.layout, u.buffer.clone())
        for name, r in due.items():
            whole[name].add_(r, alpha=factor)
        return whole
    return {name: torch.add(x, due[name], alpha=factor) if name in due else x for name, x in u.items()}


def _lost(v: Tree, got: Tree) -> Tree:
    """v - got, of the tensors that are not as they were."""
    lost = tree.map(lambda x, y: x.float() - y.float() if x.is_floating_point() else torch.zeros_like(x), v, got)
    return {name: x for name, x in lost.items() if bool(x.any())}
