"""Refuse an update that is too long, at the server (Sun et al. 2019, arXiv:1911.07963, norm thresholding).

What a client clips is a promise; this is the check of it, for sites that may not keep it. It looks at single updates, so
no secure sum can be put around it.
"""

from __future__ import annotations

from atoll import tree
from atoll.errors import ConfigError, TreeError
from atoll.types import Assignment, Properties, Transform, Tree, Update


def norm_threshold(most: float) -> Transform[None]:
    """The server refuses an update whose Euclidean norm, over all its tensors, is above `most`: its client has failed then.

    Put it after `clip`, and leave room for what codecs behind it add: `pipe(..., clip(1.0), norm_threshold(1.1), int8())`.

    Raises:
        ConfigError: most is not above 0.

    >>> import torch
    >>> sent = Update(0, "a", "train", {"w": torch.tensor([3.0, 4.0])}, 1.0, {})
    >>> norm_threshold(1.0).decode(sent, None)
    Traceback (most recent call last):
    atoll.errors.TreeError: the update is 5 long, and norm_threshold allows 1; clip it at its client
    """
    if not most > 0:
        raise ConfigError(f"norm_threshold most = {most}: must be above 0")

    def encode(assignment: Assignment, broadcast: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        return update, {}

    def decode(update: Update, like: Tree | None) -> Update:
        length = tree.norm(update.tree)
        if length > most:  # NaN is refused as what it is
            raise TreeError(f"the update is {length:g} long, and norm_threshold allows {most:g}; clip it at its client")
        return update

    return Transform("norm_threshold", lambda w: None, lambda s: {}, encode, decode, lambda s, r: (r.tree, s), Properties())
