"""Which links of a pipe do not go together, and what to use instead: asked when a federation is built, and of a job's text.

Every rule reads a link's name and the names of the properties that it has, so that it can be asked of a factory's source,
before anything heavy is imported, as well as of a Transform.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Link(NamedTuple):
    """A transform as the rules see it."""

    name: str
    properties: frozenset[str]  # the names of those of `types.Properties` that are True


class Clash(NamedTuple):
    """Two links, or a link and the algorithm, that do not go together."""

    at: int  # the link to move or to remove
    text: str  # a sentence: what clashes, why, and what to do


def clashes(links: Sequence[Link], *, payload: str = "update", secure_sum: bool = False) -> Iterator[Clash]:
    """All that does not go together, in the order of the links; the last link is nearest the network.

    `payload`: what the algorithm's clients send ("update", "composite", "encoded"). `secure_sum`: the server will only
    see sums of what leaves the last link.

    >>> [clash.text for clash in clashes([Link("zstd", frozenset({"entropy"})), Link("int8", frozenset())])]
    ["'int8' comes after 'zstd', whose output is entropy-coded bytes with nothing left to encode; put 'int8' before 'zstd'"]
    """
    names = [link.name for link in links]
    twice = [at for at, name in enumerate(names) if name in names[:at]]
    yield from (Clash(at, f"{names[at]!r} is attached twice; keep one") for at in twice)
    for at, link in enumerate(links):
        before = links[:at]
        if at in twice:
            continue
        if "bounds_norm" in link.properties:
            yield from _bound(at, link, before, payload)
        elif coded := [other for other in before if "entropy" in other.properties]:
            first = coded[0].name
            why = f"{link.name!r} comes after {first!r}, whose output is entropy-coded bytes with nothing left to encode"
            yield Clash(at, f"{why}; put {link.name!r} before {first!r}")
        if "feedback" in link.properties:
            yield from _feedback(at, link, before)
        if secure_sum and "linear" not in link.properties and "bounds_norm" not in link.properties:
            why = f"{link.name!r} is not linear, and a secure sum shows the server only the sum of what clients send"
            yield Clash(at, f"{why}; use 'cast', 'random_k' or 'sketch' instead, or leave the secure sum out")


def _bound(at: int, link: Link, before: Sequence[Link], payload: str) -> Iterator[Clash]:
    """The norm is that of the update alone, as it will be sent."""
    if payload != "update":
        yield Clash(
            at,
            f"{link.name!r} bounds the norm of an update, but this algorithm's clients send more than an update; "
            f"leave it out, or use an algorithm such as fedavg or fedprox",
        )
        return
    others = [other for other in before if "bounds_norm" not in other.properties]
    if others:
        yield Clash(at, f"{link.name!r} bounds the norm of what {others[-1].name!r} has encoded; put {link.name!r} first")


def _feedback(at: int, link: Link, before: Sequence[Link]) -> Iterator[Clash]:
    """One residual, added before anything is bounded or left out."""
    for other in before:
        if "bounds_norm" in other.properties:
            why = f"{link.name!r} adds what it left out before, after {other.name!r} has bounded the norm"
            yield Clash(at, f"{why}; put {other.name!r} inside it: around = ['{other.name}', ...]")
        elif "feedback" in other.properties:
            why = f"{link.name!r} would keep a second residual beside that of {other.name!r}, and both would send it"
            yield Clash(at, f"{why}; keep one of them")
