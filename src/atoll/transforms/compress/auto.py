"""`compress = "auto"`: the codecs of an update for a link or a byte budget, from what each was measured to cost and lose.

Above eight bits a value rounding loses next to nothing, so the plain codecs are taken; below, `layered` spends the whole budget
where it counts; below a third of a bit only the largest entries are sent. What those leave out is sent later where a client
takes part at least every other round: more seldom, error feedback gains nothing (arXiv:2211.14292, an n/m slowdown).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from atoll.errors import ConfigError

OFTEN = 0.5  # of the population asked in a round: from here on error feedback pays
_VALUE_BITS = 2  # of a kept value, where only the largest are sent
_LEAST = 1e-5  # of all entries kept


class Choice(NamedTuple):
    """Transforms as a job file would name them, and why."""

    links: tuple[Mapping[str, Any], ...]
    why: str


def budget(link_mbit_s: float | None = None, upload_s: float = 10.0, budget_bytes: float | None = None) -> float:
    """Bytes that an update may have: given, or what a link carries up in `upload_s`.

    Raises:
        ConfigError: neither or both are given, or one is not above 0.

    >>> budget(link_mbit_s=8.0, upload_s=2.0)
    2000000.0
    """
    if (link_mbit_s is None) == (budget_bytes is None):
        raise ConfigError("compress auto: give either link_mbit_s, the clients' uplink, or budget_bytes, of an update")
    for name, value in (("link_mbit_s", link_mbit_s), ("upload_s", upload_s), ("budget_bytes", budget_bytes)):
        if value is not None and not value > 0:
            raise ConfigError(f"compress {name} = {value}: must be above 0")
    return budget_bytes if budget_bytes is not None else (link_mbit_s or 0.0) * 1e6 / 8 * upload_s


def choose(values: int, budget_bytes: float, participation: float | None = None) -> Choice:
    """The codecs for an update of so many values; `participation` is the share of the clients that a round asks.

    Raises:
        ConfigError: not even a hundred-thousandth of the values fits.

    >>> [link["name"] for link in choose(1_000_000, 1e6).links]
    ['layered']
    """
    bits = 8 * budget_bytes / max(values, 1)
    fits = f"{_size(budget_bytes)} for {values:,} values is {bits:.3g} bits each"
    if bits >= 32.2:
        return Choice((), f"{fits}: they fit as they are")
    if bits >= 16.1:
        return Choice(({"name": "cast", "dtype": "bf16"},), f"{fits}: half precision fits")
    if bits >= 8.2:
        return Choice(({"name": "int8"},), f"{fits}: 8-bit integers fit")
    if bits >= 1 / 3:
        told = "shared out over the tensors by what each gains"
        return Choice(({"name": "layered", "bits": round(0.97 * bits, 3)},), f"{fits}: {told}")
    kept = fraction(0.9 * bits)
    if kept < _LEAST:
        raise ConfigError(f"compress auto: {fits}, too few to send anything; allow more seconds or bytes, or train an adapter")
    sparse: list[Mapping[str, Any]] = [{"name": "top_k", "fraction": kept}, {"name": "few_bits", "bits": _VALUE_BITS}]
    told = f"the largest {kept:.2%} of them, {_VALUE_BITS} bits each"
    if participation is not None and participation >= OFTEN:
        again = f"what is left out is sent later, as {participation:.0%} of the clients take part in a round"
        return Choice(({"name": "feedback", "around": sparse, "when": "always"},), f"{fits}: {told}; {again}")
    return Choice(tuple(sparse), f"{fits}: {told}")


def fraction(bits: float) -> float:
    """The share of entries whose values and positions take so many bits an entry: f (2 + log2(e / f)) = bits, three digits.

    >>> fraction(0.1)
    0.0099
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        f = (low + high) / 2
        if f * (_VALUE_BITS + math.log2(math.e / f)) > bits:
            high = f
        else:
            low = f
    return float(f"{low:.3g}")


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.3g} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.3g} kB"
