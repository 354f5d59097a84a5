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

    `payload`: what the algorithm's clients send, as in `types.Payload`. `secure_sum`: the server will only
    see sums of what leaves the last link.

    >>> [clash.text for clash in clashes([Link("zstd", frozenset({"entropy"})), Link("int8", frozenset())])]
    ["'int8' comes after 'zstd', whose output is entropy-coded bytes with nothing left to encode; put 'int8' before 'zstd'"]
    """
    names = [link.name for link in links]
    if payload == "scalars":
        why = "works on a model's update, but this algorithm's clients send a few scalars; leave it out"
        yield from (Clash(at, f"{name!r} {why}") for at, name in enumerate(names))
        return
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
        if "reference" in link.properties:
            why = f"{link.name!r} encodes against what both ends hold, which is so of the model and not of an update"
            yield Clash(at, f"{why}; use it for the broadcast")
        if link.properties >= {"feedback", "memory"}:  # not where the server owes, as a sketch does
            yield from _feedback(at, link, before)
        if link.properties >= {"linear", "shared"}:
            yield from _summed(at, link, before)
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
    others = [other for other in before if not other.properties & {"bounds_norm", "feedback"}]
    if others:
        yield Clash(at, f"{link.name!r} bounds the norm of what {others[-1].name!r} has encoded; put {link.name!r} first")


def _summed(at: int, link: Link, before: Sequence[Link]) -> Iterator[Clash]:
    """What is undone once, of the sum, can't be fed what is undone of each update."""
    for other in before:
        if "feedback" in other.properties:
            why = f"{link.name!r} is undone at the server alone, so that {other.name!r} can't know what it lost"
            yield Clash(at, f"{why}; use 'top_k' inside it, or {link.name!r} without it")
        elif "linear" not in other.properties and "bounds_norm" not in other.properties:
            why = f"{link.name!r} is undone after the updates are summed, and {other.name!r} before"
            yield Clash(at, f"{why}; put {link.name!r} before {other.name!r}")


def _feedback(at: int, link: Link, before: Sequence[Link]) -> Iterator[Clash]:
    """One residual, added before anything is bounded or left out."""
    for other in before:
        if "bounds_norm" in other.properties:
            why = f"{link.name!r} adds what it left out before, after {other.name!r} has bounded the norm"
            yield Clash(at, f"{why}; put {other.name!r} inside it: around = ['{other.name}', ...]")
        elif "feedback" in other.properties:
            why = f"{link.name!r} would keep a second residual beside that of {other.name!r}, and both would send it"
            yield Clash(at, f"{why}; keep one of them")
        elif "linear" not in other.properties or "shared" in other.properties:
            why = f"{link.name!r} comes after {other.name!r}, which sends other entries each round than those owed"
            yield Clash(at, f"{why}; put {other.name!r} inside it: around = ['{other.name}', ...]")


def broadcast_clash(link: Link) -> str | None:
    """Why a link can't encode the model on its way to clients, or None: what it sends must decode by itself.

    >>> broadcast_clash(Link("int8", frozenset({"unbiased"}))) is None
    True
    """
    why = {
        "bounds_norm": "bounds a norm",
        "feedback": "keeps a residual, and what a broadcast leaves out is in its next step anyway",
        "memory": "decodes by what its client remembers",
        "shared": "decodes a sum of updates",
    }
    found = next((text for name, text in why.items() if name in link.properties), None)
    return None if found is None else f"{link.name!r} is no codec of a model, as it {found}; use one such as int8 or xor"
