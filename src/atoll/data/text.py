"""Text as clients hold it, and its way to the token tensors that a language model reads.

A data set of text knows no tokenizer: it holds `Texts`. `tokenise` and its two siblings make tensors of them, with any
object that is called like a tokenizer of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from atoll.data.clients import held_out, test_size
from atoll.data.examples import Tensors
from atoll.data.partition.parts import Partition
from atoll.errors import ConfigError, DataError
from atoll.types import Batch, ClientId, Dataset, Examples

IGNORED = -100  # the label that a loss passes over (torch.nn.functional.cross_entropy)


class Tokenizer(Protocol):
    """What is asked of a tokenizer: Hugging Face's have it, and so has atoll.data.characters."""

    eos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """`input_ids`: one list of ids a text."""
        ...


class Texts:
    """Texts, each on its own, with a target text or with a class number.

    >>> texts = Texts(["Who's there?", "Nay, answer me."])
    >>> len(texts), texts.subset(torch.tensor([1])).text
    (2, ['Nay, answer me.'])
    """

    __slots__ = ("labels", "target", "text")

    def __init__(self, text: Sequence[str], target: Sequence[str] | None = None, labels: Sequence[int] | None = None) -> None:
        """Raises: DataError: target or labels are not one a text."""
        for name, other in (("target", target), ("labels", labels)):
            if other is not None and len(other) != len(text):
                raise DataError(f"{name} has {len(other)} entries for {len(text)} texts; it needs one a text.")
        self.text, self.target, self.labels = text, target, labels

    def __len__(self) -> int:
        return len(self.text)

    def subset(self, index: Tensor) -> Texts:
        """The texts at `index`, int64 (n,)."""
        rows = index.tolist()
        target = None if self.target is None else [self.target[row] for row in rows]
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return Texts([self.text[row] for row in rows], target, labels)

    def take(self, index: Tensor) -> Batch:
        """Raises: DataError: always, since text is no tensor before it is tokenised."""
        raise DataError("texts are not tensors yet; give the data set to tokenise, tokenise_pairs or tokenise_classes first.")


def tokenise(dataset: Dataset, tokenizer: Tokenizer, length: int) -> Dataset:
    """For causal language models: each client's texts joined, with an end mark after each, and cut in blocks of `length`.

    Columns are `input_ids` and `labels`, int64 (n, length), equal but for the padding of the last block, whose labels
    are -100. There is no attention mask, since a causal model sees the padding on the right from nowhere.

    Raises:
        ConfigError: length is below 2.
        DataError: the data set is not one of texts, or is tokenised already.

    >>> from atoll.data.characters import Characters
    >>> data = Dataset("toy", {ClientId("a"): {"train": Texts(["abc", "de"])}}, None)
    >>> tokenise(data, Characters("abcde"), 4).clients[ClientId("a")]["train"].take(torch.arange(2))["labels"].tolist()
    [[2, 3, 4, 1], [5, 6, 1, -100]]
    """
    if length < 2:
        raise ConfigError(f"length is {length}, but a block needs 2 tokens or more, one to read and one to predict.")

    def blocks(texts: Texts) -> Tensors:
        ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        stream = [token for ids in _ids(tokenizer, texts.text, special=False) for token in (*ids, *ends)]
        count = -(-len(stream) // length)
        pad = count * length - len(stream)
        inputs = torch.tensor(stream + [_pad_id(tokenizer)] * pad, dtype=torch.int64).view(count, length)
        labels = torch.tensor(stream + [IGNORED] * pad, dtype=torch.int64).view(count, length)
        return Tensors({"input_ids": inputs, "labels": labels})

    return _mapped(dataset, blocks, {"block_tokens": length})


def tokenise_pairs(dataset: Dataset, tokenizer: Tokenizer, source_length: int = 64, target_length: int = 64) -> Dataset:
    """For sequence-to-sequence models: pairs of texts, each cut at its length and padded to it.

    Columns are `input_ids` and `attention_mask`, int64 (n, source_length), and `labels`, int64 (n, target_length), -100
    where padded.

    Raises:
        ConfigError: a length is below 2.
        DataError: the data set is not one of pairs.
    """
    _positive(source_length=source_length, target_length=target_length)

    def padded(texts: Texts) -> Tensors:
        if texts.target is None:
            raise DataError(f"{dataset.name} holds texts without targets; sequence-to-sequence models need pairs.")
        inputs, mask = _padded(tokenizer, texts.text, source_length)
        labels, known = _padded(tokenizer, texts.target, target_length)
        return Tensors({"input_ids": inputs, "attention_mask": mask, "labels": labels.masked_fill(known == 0, IGNORED)})

    return _mapped(dataset, padded, {"source_tokens": source_length, "target_tokens": target_length})


def tokenise_classes(dataset: Dataset, tokenizer: Tokenizer, length: int = 128) -> Dataset:
    """For classifiers of text: each text cut at `length` and padded to it, with its class.

    Columns are `input_ids` and `attention_mask`, int64 (n, length), and `labels`, int64 (n,).

    Raises:
        ConfigError: length is below 2.
        DataError: the texts have no classes.
    """
    _positive(length=length)

    def padded(texts: Texts) -> Tensors:
        if texts.labels is None:
            raise DataError(f"{dataset.name} holds texts without labels; a classifier needs one class a text.")
        inputs, mask = _padded(tokenizer, texts.text, length)
        return Tensors({"input_ids": inputs, "attention_mask": mask, "labels": torch.tensor(texts.labels, dtype=torch.int64)})

    return _mapped(dataset, padded, {"tokens": length})


def in_order(
    name: str,
    texts: Mapping[str, Sequence[str]],
    about: Mapping[str, Any],
    test_fraction: float = 0.1,
    server_fraction: float = 0.1,
) -> Dataset:
    """A data set of texts, split in their order: a client's first texts train, the next are the server's, the last its test.

    Raises:
        ConfigError: a fraction is outside [0, 1).
        DataError: a client has no text.

    >>> data = in_order("toy", {"a": ["1", "2", "3", "4"]}, {}, 0.25, 0.25)
    >>> data.clients[ClientId("a")]["train"].text, data.test.text, data.clients[ClientId("a")]["test"].text
    (['1', '2'], ['3'], ['4'])
    """
    holdings: dict[ClientId, Mapping[str, Examples]] = {}
    server: list[str] = []
    for client, own in texts.items():
        if not own:
            raise DataError(f"client {client!r} of {name} has no text; leave it out.")
        last = len(own) - test_size(len(own), test_fraction)
        first = last - min(test_size(len(own), server_fraction), last - 1)
        server.extend(own[first:last])
        holdings[ClientId(client)] = {"train": Texts(own[:first]), "test": Texts(own[last:])}
    return Dataset(name, holdings, Texts(server) if server_fraction else None, about)


def at_random(
    name: str,
    texts: Mapping[str, Texts],
    about: Mapping[str, Any],
    seed: int,
    test_fraction: float = 0.1,
    server_fraction: float = 0.1,
) -> Dataset:
    """A data set of texts split at random, but so that equal texts (questions with several answers) stay together.

    Raises:
        ConfigError: a fraction is outside [0, 1).
    """
    holdings: dict[ClientId, Mapping[str, Examples]] = {}
    reserved: list[Texts] = []
    for client, own in texts.items():
        rows: dict[str, list[int]] = {}
        for row, text in enumerate(own.text):
            rows.setdefault(text, []).append(row)
        groups = list(rows.values())
        keep, server = held_out(len(groups), server_fraction, seed, "server", client)
        train, test = held_out(len(keep), test_fraction, seed, client)
        part = [
            torch.tensor([r for g in chosen.tolist() for r in groups[g]]).long() for chosen in (keep[train], keep[test], server)
        ]
        holdings[ClientId(client)] = {"train": own.subset(part[0]), "test": own.subset(part[1])}
        reserved.append(own.subset(part[2]))
    return Dataset(name, holdings, _joined(reserved) if server_fraction else None, about)


def shared_texts(
    name: str,
    texts: Texts,
    partition: Partition,
    *,
    clients: int | None,
    seed: int,
    test_fraction: float,
    server_fraction: float,
    about: Mapping[str, Any],
    by: Mapping[str, Sequence[str]] | None = None,
) -> Dataset:
    """A data set of `texts` divided by `partition`, which also reads `by` and, where there are labels, "y".

    Raises:
        ConfigError: the partition cannot be made, or a fraction is outside [0, 1).
    """
    known: dict[str, Any] = {"row": torch.arange(len(texts)), **(by or {})}
    if texts.labels is not None:
        known["y"] = torch.tensor(texts.labels)
    parts = partition(known, clients, seed)
    width = len(str(len(parts) - 1))
    held = {part.name or f"client-{number:0{width}d}": texts.subset(part.rows) for number, part in enumerate(parts)}
    return at_random(name, held, about, seed, test_fraction, server_fraction)


def strings(values: Iterable[Any], column: str) -> list[str]:
    """A column of texts.

    Raises:
        DataError: a value is no text.
    """
    found = list(values)
    for number, value in enumerate(found):
        if not isinstance(value, str):
            raise DataError(f"the column {column!r} holds {value!r} in row {number}, which is no text.")
    return found


def _joined(all_texts: Sequence[Texts]) -> Texts:
    target = [text for texts in all_texts for text in texts.target or ()]
    labels = [label for texts in all_texts for label in texts.labels or ()]
    return Texts([text for texts in all_texts for text in texts.text], target or None, labels or None)


def _mapped(dataset: Dataset, change: Callable[[Texts], Tensors], about: Mapping[str, Any]) -> Dataset:
    def changed(examples: Examples) -> Tensors:
        if not isinstance(examples, Texts):
            raise DataError(
                f"{dataset.name} does not hold texts (or is tokenised already), so that there is nothing to tokenise."
            )
        return change(examples)

    clients = {
        client: {split: changed(examples) for split, examples in splits.items()} for client, splits in dataset.clients.items()
    }
    test = None if dataset.test is None else changed(dataset.test)
    return Dataset(dataset.name, clients, test, {**dataset.about, **about})


def _ids(tokenizer: Tokenizer, text: Sequence[str], special: bool) -> list[list[int]]:
    return list(tokenizer(list(text), add_special_tokens=special)["input_ids"]) if text else []


def _padded(tokenizer: Tokenizer, text: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids (n, length) and 1 where they are of the text. A text that is cut keeps its end mark, if it has one."""
    inputs = torch.full((len(text), length), _pad_id(tokenizer), dtype=torch.int64)
    mask = torch.zeros_like(inputs)
    for row, ids in enumerate(_ids(tokenizer, text, special=True)):
        kept = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        inputs[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        mask[row, : len(kept)] = 1
    return inputs, mask


def _pad_id(tokenizer: Tokenizer) -> int:
    """Any id does where a mask or -100 hides it; a model without a padding token has an end mark."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def _positive(**lengths: int) -> None:
    for name, length in lengths.items():
        if length < 2:
            raise ConfigError(f"{name} is {length}, but must be 2 tokens or more.")
