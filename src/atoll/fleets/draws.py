"""Draws that belong to a client: hashed from (seed, client, place), for one client or for many at once, held nowhere.

The hash of (seed, client) is BLAKE2b; its places are mixed in by SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195),
whose arithmetic NumPy does for all clients in one go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from atoll import rng
from atoll.types import ClientId

Keys: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"
Whole: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Reals: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


def keys(clients: Sequence[ClientId], seed: int) -> Keys:
    """A key for each client, uint64 of shape (n,).

    >>> keys(["a", "b"], 0).tolist() == keys(["b", "a"], 0).tolist()[::-1]
    True
    """
    salt = rng.seed(seed, "fleet").to_bytes(8, "big")
    digests = b"".join(hashlib.blake2b(client.encode(), digest_size=8, key=salt).digest() for client in clients)
    return np.frombuffer(digests, dtype=np.uint64)


def uniform(key: Keys, *place: int | Whole) -> Reals:
    """Uniform in (0, 1), float64 of shape (n,), for a place that is whole numbers or arrays of them.

    >>> bool((uniform(keys(["a"], 0), 1) != uniform(keys(["a"], 0), 2)).all())
    True
    """
    bits = key
    for each in place:
        bits = _mixed(bits + np.asarray(each).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(key: Keys, *place: int | Whole) -> Reals:
    """Standard normal, float64 of shape (n,), by Box and Muller's transform.

    >>> normal(keys(["a", "b", "c"], 0), 1).shape
    (3,)
    """
    return np.asarray(np.sqrt(-2.0 * np.log(uniform(key, *place, 1))) * np.cos(2.0 * np.pi * uniform(key, *place, 2)))


def _mixed(x: Keys) -> Keys:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
