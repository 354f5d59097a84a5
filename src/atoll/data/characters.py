"""A tokenizer of single characters, for small models and tests: nothing to download, nothing to train."""

from __future__ import annotations

from collections.abc import Iterable

from atoll.data.text import Texts
from atoll.errors import ConfigError
from atoll.types import Dataset


class Characters:
    """Each character of an alphabet is a token: 0 pads, 1 ends a text, others start at 2 in the order of the alphabet.

    Characters that are not of the alphabet become `unknown`, which is added to it.

    >>> tokens = Characters("abc")
    >>> tokens("cab!")["input_ids"], tokens.decode([4, 2, 3, 1])
    ([4, 2, 3, 5], 'cab')
    """

    pad_token_id: int | None = 0
    eos_token_id: int | None = 1

    def __init__(self, alphabet: Iterable[str], unknown: str = "\N{REPLACEMENT CHARACTER}") -> None:
        """Raises: ConfigError: the alphabet is empty or holds more than single characters."""
        characters = list(dict.fromkeys(alphabet))
        if not characters or any(len(character) != 1 for character in [*characters, unknown]):
            raise ConfigError(
                f"an alphabet is one or more single characters, and so is unknown; got {characters[:5]!r}, {unknown!r}."
            )
        self.characters = [character for character in characters if character != unknown] + [unknown]
        self._ids = {character: number for number, character in enumerate(self.characters, start=2)}

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, padding and end mark included."""
        return len(self.characters) + 2

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = False) -> dict[str, list[int] | list[list[int]]]:
        """`input_ids` of one text, or of each of several; `add_special_tokens` adds the end mark."""
        if isinstance(text, str):
            return {"input_ids": self.encode(text, add_special_tokens)}
        return {"input_ids": [self.encode(one, add_special_tokens) for one in text]}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of one text."""
        unknown = self.vocab_size - 1
        return [self._ids.get(character, unknown) for character in text] + [1] * add_special_tokens

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; padding and end marks are left out, or shown as a circled zero."""
        special = "" if skip_special_tokens else "\N{CIRCLED DIGIT ZERO}"
        return "".join(self.characters[int(number) - 2] if int(number) >= 2 else special for number in ids)


def characters(dataset: Dataset) -> Characters:
    """The tokenizer for the characters that clients train on, in order of their code.

    Raises:
        ConfigError: the clients hold no text.
    """
    seen: set[str] = set()
    for splits in dataset.clients.values():
        train = splits.get("train")
        if isinstance(train, Texts):
            for text in [*train.text, *(train.target or ())]:
                seen.update(text)
    return Characters(sorted(seen))
