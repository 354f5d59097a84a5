"""Short questions and their answers by topic (chatterbot-corpus): pairs for sequence-to-sequence models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atoll.data.fetch import fetch
from atoll.data.packages import CHATTERBOT
from atoll.data.text import Texts, at_random
from atoll.errors import ConfigError, DataError, missing_extra
from atoll.types import Dataset

ABOUT = {
    "source": "PyPI package chatterbot-corpus 1.3.3, English",
    "licence": "BSD-3-Clause",
    "examples": "1,205 different question/answer pairs",
    "clients": "19 topics with 10 pairs or more, of 21",
    "split": "at random: a tenth of each topic's questions is the server's, a tenth of the rest the client's own test",
    "inputs": "texts: question and answer; tokenise_pairs makes tensors of them",
}


def qa(
    clients: int | None = None, min_pairs: int = 10, test_fraction: float = 0.1, server_fraction: float = 0.1, seed: int = 0
) -> Dataset:
    """Question and answer pairs by topic (None: every topic with `min_pairs` or more; a number: the largest).

    Each pair counts once (the corpus repeats some), and all answers to one question are in one split.

    Raises:
        FetchError: it could not be fetched.
        ConfigError: more topics are asked for than there are.
        MissingExtra: PyYAML is absent.

    >>> data = qa(clients=4)  # doctest: +SKIP
    """
    topics = {path.stem: pairs(path) for path in sorted((fetch(CHATTERBOT) / "chatterbot_corpus/data/english").glob("*.yml"))}
    enough = sorted((name for name in topics if len(topics[name]) >= min_pairs), key=lambda name: (-len(topics[name]), name))
    count = len(enough) if clients is None else clients
    if not 1 <= count <= len(enough):
        raise ConfigError(
            f"clients is {clients}, but {len(enough)} topics have {min_pairs} or more pairs; ask for 1 to {len(enough)}."
        )
    return at_random("qa", {name: topics[name] for name in sorted(enough[:count])}, ABOUT, seed, test_fraction, server_fraction)


def pairs(path: Path) -> Texts:
    """The different question/answer pairs of a file in chatterbot's form: `conversations`, each a question and answers.

    Raises:
        DataError: the file is not of that form.
        MissingExtra: PyYAML is absent.
    """
    try:
        import yaml
    except ImportError:
        raise missing_extra("PyYAML", "data", "question/answer pairs") from None
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = {
            (" ".join(str(question).split()), " ".join(str(answer).split())): None
            for question, *answers in content["conversations"]
            for answer in answers
        }
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a list of conversations: {type(error).__name__} {error}.") from error
    return Texts([question for question, _ in found], target=[answer for _, answer in found])
