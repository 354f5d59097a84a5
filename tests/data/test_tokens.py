"""Tokens are made once: the same bits, by whoever asks again, and other files for whatever would change them."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atoll.data.characters import Characters
from atoll.data.text import Texts, tokenise, tokenise_classes
from atoll.data.tokens import kept
from atoll.errors import DataError
from atoll.types import ClientId, Dataset
from tests.data.test_packed import same

WORDS = Characters("abcdef ")


def texts(first: str = "abc") -> Dataset:
    said = {
        "Zoe": {"train": Texts([first, "de"]), "test": Texts(["fed"])},
        "Al": {"train": Texts(["a bad cafe"]), "test": Texts([])},
    }
    return Dataset("toy", {ClientId(name): splits for name, splits in said.items()}, Texts(["face"]), {"source": ("x", 1)})


class Making:
    """Tokenises, and counts how often."""

    def __init__(self, data: Dataset, length: int = 4) -> None:
        self.data, self.length, self.times, self._lock = data, length, 0, threading.Lock()

    def __call__(self) -> Dataset:
        with self._lock:
            self.times += 1
        time.sleep(0.2)
        return tokenise(self.data, WORDS, self.length)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer's folder, and a cache of its own."""
    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    return tmp_path / "words"


def files(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache" / "tokens").glob("*.safetensors"))


def test_the_second_time_nothing_is_made_and_nothing_differs(folder: Path) -> None:
    making = Making(texts())
    first, second = (kept(texts(), folder, [4], making) for _ in range(2))
    assert making.times == 1
    for data in (first, second, pickle.loads(pickle.dumps(second))):
        same(making(), data)
        assert (data.name, data.about) == ("toy", {"source": ("x", 1), "block_tokens": 4})
    assert [path.suffix for path in files(folder)] == [".safetensors"]


def test_a_pickle_reads_without_the_cache(folder: Path) -> None:
    """A worker on another machine does not see this one's cache."""
    pickled = pickle.dumps(kept(texts(), folder, [4], Making(texts())))
    files(folder)[0].unlink()
    same(tokenise(texts(), WORDS, 4), pickle.loads(pickled))


def test_whatever_would_change_the_tokens_makes_them_anew(folder: Path) -> None:
    def times(data: Dataset, how: object = (4,)) -> int:
        making = Making(data)
        kept(data, folder, how, making)
        return making.times

    assert times(texts()) == 1
    assert times(texts()) == 0
    assert times(texts("abd")) == 1
    assert times(texts(), [5]) == 1
    plain = texts()
    assert times(plain._replace(clients=dict(reversed(plain.clients.items())))) == 1
    assert times(plain._replace(test=None)) == 1
    (folder / "README.md").write_text("of no matter")
    assert times(texts()) == 0
    (folder / "vocab.txt").write_text("a")
    assert times(texts()) == 1
    assert len(files(folder)) == 6


def test_two_at_once_make_it_once(folder: Path) -> None:
    making = Making(texts())
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: kept(texts(), folder, [4], making), range(2))
    assert making.times == 1
    same(one, two)


@pytest.mark.parametrize("spoil", [lambda content: content[:-5], lambda _: b""])
def test_a_damaged_file_is_made_anew(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    kept(texts(), folder, [4], Making(texts()))
    file = files(folder)[0]
    file.write_bytes(spoil(file.read_bytes()))
    making = Making(texts())
    same(kept(texts(), folder, [4], making), making())
    assert making.times == 2
    kept(texts(), folder, [4], making)
    assert making.times == 2


def test_without_a_cache_it_is_said_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_CACHE", str(folder / "tokenizer.json"))  # a file is no folder
    making = Making(texts())
    with pytest.warns(UserWarning, match="tokens are not kept"):
        data = kept(texts(), folder, [4], making)
    assert making.times == 1
    same(tokenise(texts(), WORDS, 4), data)


def test_what_is_wrong_with_the_texts_is_said_as_without_a_cache(folder: Path) -> None:
    with pytest.raises(DataError, match="texts without labels"):
        kept(texts(), folder, [4], lambda: tokenise_classes(texts(), WORDS, 4))
    with pytest.raises(DataError, match="tokenised already"):
        kept(tokenise(texts(), WORDS, 4), folder, [4], lambda: texts())
    assert files(folder) == []


def test_a_jobs_second_run_loads_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    from atoll.job.build import data_of
    from atoll.job.check import check
    from atoll.job.text import parse

    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path / "cache"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(["?", "sun", "rain"])}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?", eos_token="?").save_pretrained(tmp_path / "model")
    (tmp_path / "said.csv").write_text("said,town\n" + "sun rain sun,A\nrain sun,B\n" * 9)
    job = check(
        parse(
            f"""atoll = 1\nrounds = 1\n[data]\nname = "table"\npath = "{tmp_path}/said.csv"\ntext = "said"\nby = "town"
[task]\nname = "causal_lm"\nmodel = "{tmp_path}/model"\n[tokens]\nlength = 4\n[local]\nname = "sgd"
[algorithm]\nname = "fedavg" """
        )
    )
    first = data_of(job)

    def refuse(name: str) -> None:
        raise AssertionError(f"the tokenizer of {name} is loaded again")

    monkeypatch.setattr("atoll.tasks.pretrained.tokenizer", refuse)
    second = data_of(job)
    same(first, second)
    assert len(second.clients[ClientId("A")]["train"]) > 0
    assert second.about["block_tokens"] == 4
    unkept = job.model_copy(update={"tokens": job.tokens.model_copy(update={"keep": False})})
    with pytest.raises(AssertionError, match="loaded again"):
        data_of(unkept)
