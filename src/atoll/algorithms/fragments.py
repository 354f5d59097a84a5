"""A model in fragments of whole layers, which streaming algorithms synchronise in turn (arXiv:2501.18512, section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from atoll.errors import ConfigError
from atoll.types import Tree


def fragments(model: Tree, count: int) -> list[tuple[str, ...]]:
    """The names of `count` fragments of about one size: layer i goes to fragment i mod count, as the paper's strided
    pattern, and what belongs to no numbered layer (embeddings, the last norm) to whichever is smallest by then.

    They depend on names and shapes alone, so that both ends cut alike.

    Raises:
        ConfigError: there are more fragments than layers and other tensors.

    >>> import torch
    >>> w = {name: torch.zeros(size) for name, size in {"token": 9, "h.0.a": 2, "h.1.a": 2, "h.2.a": 2, "norm": 1}.items()}
    >>> fragments(w, 2)
    [('h.0.a', 'h.2.a', 'norm'), ('h.1.a', 'token')]
    """
    if count < 1:
        raise ConfigError(f"fragments = {count}: must be 1 or more")
    layers: dict[tuple[str, int], list[str]] = {}
    others: list[str] = []
    for name in sorted(model):
        numbered = re.match(r"(.*?)(?<![^.])(\d+)(?=\.|$)", name)
        if numbered:
            layers.setdefault((numbered[1], int(numbered[2])), []).append(name)
        else:
            others.append(name)
    found: list[list[str]] = [[] for _ in range(count)]
    for i, layer in enumerate(sorted(layers)):
        found[i % count] += layers[layer]
    for name in sorted(others, key=lambda name: (-model[name].numel(), name)):
        min(found, key=lambda names: _size(model, names)).append(name)
    if not all(found):
        raise ConfigError(f"fragments = {count}: this model has {sum(map(bool, found))} layers to tell apart; ask for fewer")
    return [tuple(names) for names in found]


def part(whole: Tree, names: tuple[str, ...]) -> Tree:
    """The tensors of a fragment, in its order; those that are not there, such as moments of buffers, left out."""
    return {name: whole[name] for name in names if name in whole}


def _size(model: Mapping[str, object], names: list[str]) -> int:
    return sum(model[name].numel() for name in names)  # type: ignore[attr-defined]
