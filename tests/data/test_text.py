"""Texts and their way to tokens: nothing lost, nothing learnt from padding, splits in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.data.characters import Characters, characters
from atoll.data.qa import pairs
from atoll.data.shakespeare import speeches
from atoll.data.sotu import passages
from atoll.data.text import IGNORED, Texts, at_random, in_order, tokenise, tokenise_classes, tokenise_pairs
from atoll.errors import ConfigError, DataError
from atoll.types import ClientId, Dataset

A = ClientId("a")


def holding(texts: Texts) -> Dataset:
    return Dataset("toy", {A: {"train": texts}}, None)


@given(texts=st.lists(st.text("abc d\n", max_size=30), max_size=8), length=st.integers(2, 12))
def test_blocks_hold_every_token_in_order_and_nothing_else_counts(texts: list[str], length: int) -> None:
    alphabet = Characters("abc d\n")
    examples = tokenise(holding(Texts(texts)), alphabet, length).clients[A]["train"]
    batch = examples.take(torch.arange(len(examples)))
    kept = batch["labels"] != IGNORED
    assert batch["input_ids"].shape[1:] == (length,)
    assert torch.equal(batch["input_ids"][kept], batch["labels"][kept])
    assert batch["labels"][kept].tolist() == [i for text in texts for i in alphabet.encode(text, add_special_tokens=True)]
    assert kept[:-1].all()
    assert (~kept).sum() < length


def test_pairs_are_cut_and_padded_and_padding_is_no_label() -> None:
    data = tokenise_pairs(holding(Texts(["ab", "abcab"], target=["c", "cba"])), Characters("abc"), 4, 3)
    batch = data.clients[A]["train"].take(torch.arange(2))
    assert batch["input_ids"].tolist() == [[2, 3, 1, 0], [2, 3, 4, 1]]  # the cut one keeps its end mark
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[4, 1, IGNORED], [4, 3, 1]]
    assert data.about == {"source_tokens": 4, "target_tokens": 3}


def test_classes_keep_their_labels() -> None:
    data = tokenise_classes(holding(Texts(["a", "b"], labels=[1, 0])), Characters("ab"), 3)
    batch = data.clients[A]["train"].take(torch.tensor([1]))
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[3, 1, 0]], [0])


def test_texts_that_lack_what_is_asked_are_refused() -> None:
    plain = holding(Texts(["a"]))
    with pytest.raises(DataError, match="texts without targets"):
        tokenise_pairs(plain, Characters("a"))
    with pytest.raises(DataError, match="texts without labels"):
        tokenise_classes(plain, Characters("a"))
    with pytest.raises(DataError, match="tokenised already"):
        tokenise(tokenise(plain, Characters("a"), 4), Characters("a"), 4)
    with pytest.raises(DataError, match="texts are not tensors yet; give the data set to tokenise"):
        plain.clients[A]["train"].take(torch.tensor([0]))
    with pytest.raises(DataError, match="labels has 1 entries for 2 texts"):
        Texts(["a", "b"], labels=[0])
    for length in (0, 1):
        with pytest.raises(ConfigError, match=f"length is {length}"):
            tokenise(plain, Characters("a"), length)
    with pytest.raises(ConfigError, match="target_length is 1"):
        tokenise_pairs(plain, Characters("a"), 4, 1)


def test_a_client_without_text_has_no_blocks() -> None:
    for made in (tokenise(holding(Texts([])), Characters("a"), 4), tokenise_pairs(holding(Texts([], [])), Characters("a"), 4, 4)):
        assert len(made.clients[A]["train"]) == 0


def test_a_tokenizer_of_hugging_face_fits() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "</s>": 1, "to": 2, "be": 3, "?": 4}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="[PAD]")
    data = holding(Texts(["to be", "be"], target=["be", "to"]))
    block = tokenise(data, fast, 4).clients[A]["train"].take(torch.tensor([0, 1]))
    assert block["labels"].tolist() == [[2, 3, 1, 3], [1, IGNORED, IGNORED, IGNORED]]
    assert tokenise_pairs(data, fast, 3, 2).clients[A]["train"].take(torch.tensor([0]))["labels"].tolist() == [[3, IGNORED]]


@given(st.text("abcxyz ", max_size=40))
def test_characters_go_there_and_back(text: str) -> None:
    tokens = Characters("abcxyz ")
    assert tokens.decode(tokens.encode(text, add_special_tokens=True)) == text
    assert max(tokens.encode(text), default=0) < tokens.vocab_size == len(tokens) == 10


def test_characters_beyond_the_alphabet_become_the_unknown_one() -> None:
    tokens = Characters("ab")
    assert tokens.decode(tokens.encode("aéb")) == "a\N{REPLACEMENT CHARACTER}b"
    with pytest.raises(ConfigError, match="an alphabet is one or more single characters"):
        Characters([])
    with pytest.raises(ConfigError, match="single characters"):
        Characters(["ab"])


def test_the_alphabet_comes_from_what_clients_train_on() -> None:
    data = Dataset("toy", {A: {"train": Texts(["ba"], target=["c"]), "test": Texts(["z"])}}, Texts(["y"]))
    assert characters(data).characters[:-1] == ["a", "b", "c"]
    with pytest.raises(ConfigError):
        characters(Dataset("toy", {}, None))


@given(count=st.integers(1, 60), own=st.sampled_from([0.0, 0.1, 0.3]), server=st.sampled_from([0.0, 0.1, 0.4]))
def test_splits_in_order_lose_nothing_and_always_train(count: int, own: float, server: float) -> None:
    texts = [str(number) for number in range(count)]
    data = in_order("toy", {"a": texts}, {}, own, server)
    train, test = data.clients[A]["train"], data.clients[A]["test"]
    assert isinstance(train, Texts)
    assert isinstance(test, Texts)
    assert isinstance(data.test, Texts | None)
    assert [*train.text, *(data.test.text if data.test else ()), *test.text] == texts
    assert len(train) >= 1


def test_a_client_without_a_text_is_named() -> None:
    with pytest.raises(DataError, match="client 'b' of toy has no text"):
        in_order("toy", {"a": ["x"], "b": []}, {})


def test_random_splits_keep_equal_questions_together() -> None:
    texts = Texts([f"q{number // 3}" for number in range(60)], target=[str(number) for number in range(60)])
    data = at_random("toy", {"a": texts}, {}, seed=0, test_fraction=0.2, server_fraction=0.2)
    held = [data.clients[A]["train"], data.clients[A]["test"], data.test]
    questions = [set(part.text) for part in held if isinstance(part, Texts)]
    assert sum(len(part) for part in questions) == len(set.union(*questions)) == 20
    targets = [target for part in held if isinstance(part, Texts) for target in part.target or ()]
    assert sorted(targets, key=int) == [str(number) for number in range(60)]


PLAY = """KING LEAR
Persons Represented.

Lear, King of Britain.
Kent, an Earl.

ACT I.

Kent.
See better,   Lear; and let me still remain
The true blank of thine eye.

Lear.
Now, by Apollo,--

[Laying his hand on his sword.]

O vassal! miscreant!

Enter a Fool.

1 Clown.
This? [Takes up the skull.] Alas.

[Exit.]

Gon.
[Aside.] O

THE END
"""


def test_speeches_follow_headings_without_stage_directions() -> None:
    assert speeches(PLAY) == [
        ("KENT", "See better, Lear; and let me still remain\nThe true blank of thine eye."),
        ("LEAR", "Now, by Apollo,--\nO vassal! miscreant!"),
        ("1 CLOWN", "This? Alas."),
        ("GON", "O"),
    ]
    assert speeches("") == []
    assert speeches(PLAY.replace("\n", "\r\n")) == speeches(PLAY)


def test_shortened_names_are_written_out() -> None:
    persons = "Sir John Falstaff. Prince Henry.\n\n"
    assert [name for name, _ in speeches(persons + "Fal.\nNo.\n\nP. Hen.\nYes.")] == ["FALSTAFF", "P. HEN"]
    assert speeches("HOT.\nI, Hotspur? Hotspur!\n\nHost.\nHot news.")[0][0] == "HOTSPUR"  # where no persons are listed


@given(st.text("ab .!?\n", max_size=200), st.integers(1, 9))
def test_passages_lose_no_word(text: str, words: int) -> None:
    made = passages(text, words)
    assert " ".join(made).split() == text.split()
    assert all(len(passage.split()) >= words for passage in made[:-1])


def test_pairs_of_a_file_count_once_and_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "topic.yml"
    path.write_text("conversations:\n- - q\n  - a\n  - b\n- - q\n  - a\n- - r\n  - 1\n")
    found = pairs(path)
    assert (found.text, found.target) == (["q", "q", "r"], ["a", "b", "1"])
    for wrong in ("conversations: [", "other: 1", "conversations: 3", "- a"):
        path.write_text(wrong)
        with pytest.raises(DataError, match=r"topic\.yml is not a list of conversations"):
            pairs(path)
