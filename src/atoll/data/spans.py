"""Clients that are made when they are asked for: 100,000 of them are a few flat arrays, and no Python object each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from atoll.data.examples import Tensors
from atoll.types import ClientId, Examples


class Spans(Mapping[ClientId, Mapping[str, Examples]]):
    """Clients whose splits are consecutive spans of the same examples, in the order of `ids`.

    >>> whole = Tensors({"y": torch.arange(6)})
    >>> clients = Spans({ClientId("a"): 0, ClientId("b"): 1}, ["train", "test"], torch.tensor([0, 2, 3, 5, 6]), whole)
    >>> {client: [len(examples) for examples in splits.values()] for client, splits in clients.items()}
    {'a': [2, 1], 'b': [2, 1]}
    >>> clients["b"]["train"].column("y").tolist()
    [3, 4]
    """

    __slots__ = ("_again", "_bounds", "_ids", "splits", "telling", "whole")

    def __init__(
        self,
        ids: Mapping[ClientId, int],
        splits: Sequence[str],
        bounds: Tensor,
        whole: Tensors,
        again: tuple[Callable[..., Spans], tuple[Any, ...]] | None = None,
        telling: Sequence[int] | None = None,
    ) -> None:
        """Split s of client c has the examples bounds[k] to bounds[k + 1] of `whole`, where k = c * len(splits) + s.

        `ids` numbers the clients in its order from 0; `bounds` is int64 (len(ids) * len(splits) + 1,), ascending. A
        pickle of it is the call `again`, if that is given. `telling`: examples, one of them with the largest number of
        each column, by which a task is judged to fit without reading them all; None: not known.
        """
        self._ids, self.splits, self._bounds, self.whole, self._again = ids, tuple(splits), bounds.numpy(), whole, again
        self.telling = telling

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._ids)

    def __contains__(self, client: object) -> bool:
        return client in self._ids

    def __getitem__(self, client: ClientId) -> Mapping[str, Examples]:
        return Splits(self, self._ids[client])

    def examples(self, client: int, split: str) -> Tensors:
        """The examples of one split of the client of that number.

        Raises:
            KeyError: there is no such split.
        """
        if split not in self.splits:
            raise KeyError(split)
        k = client * len(self.splits) + self.splits.index(split)
        return self.whole.span(int(self._bounds[k]), int(self._bounds[k + 1]))

    def __reduce__(self) -> tuple[Any, ...]:
        return self._again or (Spans, (self._ids, self.splits, torch.from_numpy(self._bounds), self.whole, None, self.telling))


class Splits(Mapping[str, Examples]):
    """One client's splits, of which each is made when it is asked for."""

    __slots__ = ("_client", "_clients")

    def __init__(self, clients: Spans, client: int) -> None:
        self._clients, self._client = clients, client

    def __len__(self) -> int:
        return len(self._clients.splits)

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients.splits)

    def __contains__(self, split: object) -> bool:
        return split in self._clients.splits

    def __getitem__(self, split: str) -> Examples:
        return self._clients.examples(self._client, split)


class Ids(Mapping[ClientId, int]):
    """Names in flat arrays, numbered in their order; one is found by bisection of their hashes.

    >>> ids = Ids(*flat(["Rome", "Bonn", "Oslo"]))
    >>> list(ids), ids["Oslo"], "Paris" in ids
    (['Rome', 'Bonn', 'Oslo'], 2, False)
    """

    __slots__ = ("_ends", "_hashes", "_order", "_text")

    def __init__(self, text: Tensor, ends: Tensor, hashes: Tensor, order: Tensor) -> None:
        """UTF-8 of all names, uint8; where each ends; their hashes, ascending; and whose each of these is: int64 (n,)."""
        self._text, self._ends, self._hashes, self._order = text.numpy(), ends.numpy(), hashes.numpy(), order.numpy()

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[ClientId]:
        start, text = 0, self._text.data
        for first in range(0, len(self), 4096):  # as numbers of Python's, some thousands at a time
            for end in self._ends[first : first + 4096].tolist():
                yield ClientId(str(text[start:end], "utf-8"))
                start = end

    def __getitem__(self, client: ClientId) -> int:
        if isinstance(client, str):
            name = client.encode()
            place = int(self._hashes.searchsorted(hashed := _hash(name)))
            while place < len(self) and self._hashes[place] == hashed:  # nearly always one
                number = int(self._order[place])
                if self._text[self._ends[number - 1] if number else 0 : self._ends[number]].tobytes() == name:
                    return number
                place += 1
        raise KeyError(client)

    def __reduce__(self) -> tuple[Any, ...]:
        return Ids, tuple(torch.from_numpy(one) for one in (self._text, self._ends, self._hashes, self._order))


def flat(names: Iterable[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `Ids` is made of."""
    encoded = [name.encode() for name in names]
    text = (
        torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8) if any(encoded) else torch.zeros(0, dtype=torch.uint8)
    )
    ends = torch.tensor([len(name) for name in encoded], dtype=torch.int64).cumsum(0)
    return text, ends, *torch.tensor([_hash(name) for name in encoded], dtype=torch.int64).sort()


def _hash(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big", signed=True)
