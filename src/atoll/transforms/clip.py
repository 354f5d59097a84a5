"""Clip an update to a Euclidean norm (McMahan et al. 2018, arXiv:1710.06963): u / max(1, |u| / norm)."""

from __future__ import annotations

from atoll import tree
from atoll.errors import ConfigError
from atoll.types import Assignment, Properties, Transform, Tree, Update

METRICS = ("clipped", "norm")  # what it adds to an update's


def clip(norm: float) -> Transform[None]:
    """Scale an update down to `norm` (in units of the update, over all its tensors) when it is longer.

    The metric "clipped" is 1 where it was; its mean over clients is the share that was clipped.

    >>> import torch
    >>> u = Update(0, "a", "train", {"w": torch.tensor([3.0, 4.0])}, 1.0, {})
    >>> clip(1.0).encode(None, {}, {}, u)[0].tree["w"].tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    if not norm > 0:
        raise ConfigError(f"clip norm = {norm}: must be above 0")

    def encode(assignment: Assignment, broadcast: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        length = tree.norm(update.tree)
        metrics = {**update.metrics, "clipped": float(length > norm), "norm": length}
        clipped = update.tree
        if length > norm:
            clipped = tree.map(lambda x: x * (norm / length) if x.is_floating_point() else x, clipped)
        return update._replace(tree=clipped, metrics=metrics), {}

    return Transform("clip", lambda w: None, lambda s: {}, encode, None, lambda s, r: (r.tree, s), Properties(bounds_norm=True))
