"""Several transforms as one, so that what wraps a transform can wrap a whole pipe of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from atoll import tree
from atoll.types import Assignment, Properties, Reduced, Transform, Tree, Update

States: TypeAlias = tuple[Any, ...]  # one a link, in their order


def chain(name: str, links: Iterable[Transform[Any]]) -> Transform[States]:
    """`chain("small", [clip(1.0), top_k(0.01), int8()])`: encodes in this order, decodes and finishes in reverse.

    Each link has a corner of its own in the broadcast and in the client's memory.

    >>> import torch
    >>> from atoll.transforms.compress.cast import cast
    >>> from atoll.transforms.clip import clip
    >>> small = chain("small", [clip(1.0), cast("bf16")])
    >>> small.encode(None, {}, {}, Update(0, "a", "train", {"w": torch.tensor([3.0, 4.0])}, 1.0, {}))[0].tree["w"]
    tensor([0.6016, 0.8008], dtype=torch.bfloat16)
    """
    parts = tuple(links)

    def broadcast(states: States) -> Tree:
        told: dict[str, Any] = {}
        for link, state in zip(parts, states, strict=True):
            told |= tree.put(link.broadcast(state), f"{link.name}/")
        return told

    def encode(assignment: Assignment, told: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        kept: dict[str, Any] = {}
        for link in parts:
            corner = f"{link.name}/"
            update, own = link.encode(assignment, tree.take(told, corner), tree.take(memory, corner), update)
            kept |= tree.put(own, corner)
        return update, kept

    def form(like: Tree) -> Tree:
        for link in parts:
            like = link.form(like) if link.form is not None else like
        return like

    def decode(update: Update, like: Tree | None) -> Update:
        expected = [like]  # of each link, as far as it is known
        for link in parts[:-1]:
            like = link.form(like) if link.form is not None and like is not None else like
            expected.append(like)
        for link, one in zip(reversed(parts), reversed(expected), strict=True):
            update = link.decode(update, one) if link.decode is not None else update
        return update

    def finish(states: States, reduced: Reduced) -> tuple[Tree, States]:
        after: list[Any] = []
        for link, state in zip(reversed(parts), reversed(states), strict=True):
            finished, own = link.finish(state, reduced)
            reduced = reduced._replace(tree=finished)
            after.append(own)
        return reduced.tree, tuple(reversed(after))

    return Transform(
        name,
        lambda params: tuple(link.init(params) for link in parts),
        broadcast,
        encode,
        decode if any(link.decode is not None for link in parts) else None,
        finish,
        _properties(parts),
        form if any(link.form is not None for link in parts) else None,
        parts,
    )


def _properties(parts: tuple[Transform[Any], ...]) -> Properties:
    """A promise to the server holds if every link keeps it; a want is there if one link has it."""
    each = [link.properties for link in parts]
    return Properties(
        linear=all(p.linear for p in each),
        unbiased=all(p.unbiased for p in each),
        memory=any(p.memory for p in each),
        bounds_norm=bool(each) and all(p.bounds_norm for p in each),
        shared=any(p.shared for p in each),
        entropy=any(p.entropy for p in each),
        feedback=any(p.feedback for p in each),
    )
