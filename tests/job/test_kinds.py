"""Each kind of task and of data from a job file: read, tokenised where it is text, trained for two rounds, and saved."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atoll.errors import ConfigError, DataError
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.text import parse
from atoll.result import Result
from atoll.rng import seeded

WORDS = ["sun", "rain", "wind", "snow", "gold", "coin", "bank", "debt"]


def job(data: str, task: str, *more: str, local: str = 'name = "sgd"\nlr = 0.1\nbatch_size = 8\nsteps = 2') -> str:
    return "\n".join(
        [
            "atoll = 1\nrounds = 2",
            f"[data]\n{data}",
            f"[task]\n{task}",
            f"[local]\n{local}",
            '[algorithm]\nname = "fedavg"',
            *more,
        ]
    )


def run(text: str, *sets: str) -> Result:
    checked = check(parse(text, overrides=sets))
    result = build(checked).run(checked.rounds)
    assert result.metrics["loss"] < result.history("baseline")[0][1]
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of every form, and the smallest BERT and T5 with a tokenizer of words."""
    folder = tmp_path_factory.mktemp("kinds")
    chance = np.random.default_rng(0)
    rows = []
    for i in range(120):
        topic = ["weather", "money"][i % 2]
        half = WORDS[:4] if topic == "weather" else WORDS[4:]
        said = " ".join(chance.choice(half, 5))
        rows.append({"said": said, "answer": said.split()[0], "topic": topic, "town": "ABC"[i % 3]})
    with (folder / "said.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with (folder / "houses.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["town", "rooms", "age", "price"])
        for i in range(90):
            rooms, age = chance.integers(1, 6), chance.integers(0, 50)
            writer.writerow(["ABC"[i % 3], rooms, age, round(2.0 * rooms - 0.05 * age, 2)])
    for client in "abc":
        (folder / "sites" / client).mkdir(parents=True)
        y = chance.integers(0, 3, 40)
        x = chance.normal(size=(40, 5)).astype("float32") + y[:, None]
        np.savez(folder / "sites" / client / "part.npz", x=x, y=y)
    return folder


@pytest.fixture(scope="module")
def models(place: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]"
    )
    bert = transformers.BertConfig(
        vocab_size=12,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    t5 = transformers.T5Config(vocab_size=12, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with seeded(3):
        made = {"bert": transformers.BertModel(bert), "t5": transformers.T5ForConditionalGeneration(t5)}
    for name, module in made.items():
        module.save_pretrained(place / name)
        fast.save_pretrained(place / name)
    return place


ADAMW = 'name = "adamw"\nlr = 1e-2\nbatch_size = 8\nsteps = 6'
TOKENS = "[tokens]\nlength = 8\ntarget_length = 4"


def said(place: Path, *more: str) -> str:
    return "\n".join([f'name = "table"\npath = "{place}/said.csv"\ntext = "said"\nby = "town"', *more])


def classifier(place: Path, data: str | None = None) -> str:
    task = f'name = "sequence_classification"\nmodel = "{place}/bert"\nclasses = 2'
    return job(data or said(place, 'label = "topic"'), task, TOKENS, local=ADAMW)


@pytest.mark.slow
def test_texts_of_a_table_are_classified(models: Path, tmp_path: Path) -> None:
    result = run(classifier(models))
    transformers = pytest.importorskip("transformers")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(result.save(tmp_path / "model"))
    assert again.config.num_labels == 2


@pytest.mark.slow
def test_texts_of_a_saved_hub_data_set_are_classified(models: Path) -> None:
    datasets = pytest.importorskip("datasets")
    with (models / "said.csv").open() as file:
        rows = list(csv.DictReader(file))
    datasets.Dataset.from_list(rows).class_encode_column("topic").save_to_disk(models / "hub")
    data = f'name = "hub"\nsource = "{models}/hub"\ntext = "said"\nlabel = "topic"\nclients = 3'
    run(classifier(models, data))


@pytest.mark.slow
def test_pairs_of_a_table_are_answered(models: Path) -> None:
    task = f'name = "seq2seq"\nmodel = "{models}/t5"'
    run(job(said(models, 'target_text = "answer"'), task, TOKENS, local=ADAMW))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["task.classes=2", "data.label=town", "data.by=topic"], "Target 2 is out of bounds; one example is .*labels .* up to 2"),
        (["tokens.length=32"], r"can't read said: .*one example is .*input_ids int64 \(1, 32\)"),
    ],
)
def test_a_classifier_that_does_not_fit_its_texts(models: Path, sets: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(check(parse(classifier(models), overrides=sets)))


@pytest.mark.slow
def test_texts_without_what_the_task_needs(models: Path) -> None:
    with pytest.raises(DataError, match="said holds texts without labels; a classifier needs one class a text"):
        build(check(parse(classifier(models, said(models)))))
    with pytest.raises(DataError, match="said holds texts without targets"):
        build(check(parse(job(said(models), f'name = "seq2seq"\nmodel = "{models}/t5"'))))


def test_characters_from_scratch(place: Path) -> None:
    task = 'name = "next_token"\nmodel = { name = "transformer", width = 16, layers = 1, heads = 2, context = 16 }'
    run(job(said(place, 'label = "topic"'), task, "[tokens]\nlength = 16", local=ADAMW))
    with pytest.raises(ConfigError, match=r"\[task\] next_token can't read said: .*up to"):
        run(job(said(place), task.replace("context = 16", "context = 16, vocabulary = 9"), "[tokens]\nlength = 16"))


def test_a_table_is_regressed(place: Path) -> None:
    data = f'name = "table"\npath = "{place}/houses.csv"\nlabel = "price"\nby = "town"'
    run(job(data, 'name = "regression"\nmodel = { name = "linear", inputs = 2 }'))


def test_arrays_of_a_folder_are_classified(place: Path, tmp_path: Path) -> None:
    text = job(
        f'name = "folder"\npath = "{place}/sites"', 'name = "classification"\nmodel = { name = "mlp", inputs = 5, outputs = 3 }'
    )
    result = run(text)
    assert set(load_file(result.save(tmp_path) / "model.safetensors")) == set(result.params)
    with pytest.raises(
        ConfigError, match=r"Target 2 is out of bounds; one example is x float32 \(1, 5\), y int64 \(1,\) up to 2"
    ):
        run(text, "task.model.outputs=2")
    with pytest.raises(ConfigError, match=r"policy in_flight = 4, but sites has 3 clients"):
        run(text, 'policy={name="synchronous", clients_per_round=4}')


DIGITS = job('name = "digits"\nclients = 4', 'name = "classification"\nmodel = { name = "mlp", inputs = 64, hidden = [8] }')


@pytest.mark.parametrize(
    "sets",
    [
        ['transforms=[{name="clip", norm=1.0}, {name="cast", dtype="fp16"}]'],
        ["algorithm=fedbuff", 'policy={name="buffered", clients_in_flight=3, buffer=2}'],
        ["algorithm=fedasync", 'policy={name="buffered", clients_in_flight=2, buffer=1}'],
        ['policy={name="over_selecting", clients_per_round=2, factor=1.5}'],
        ['policy={name="deadline", clients_per_round=3, timeout_s=60}'],
        ["evaluation.per_client=true", 'personalise={name="sgd", lr=0.05}'],
        ['local.schedule="cosine"', "local.schedule_rounds=2", "local.warmup_rounds=0"],
        ["local.accumulate=2", "local.checkpointing=true", 'local.precision="bf16"'],
        ['local={name="adamw", weight_decay=0.1, clip_norm=1.0, schedule="linear", schedule_rounds=3}'],
        ["algorithm=qfedavg"],
        ["algorithm=mimelite"],
        ["algorithm=feddyn"],
        ['algorithm={name="fednova", server_opt={name="momentum", beta=0.5}}'],
        ['algorithm={name="fedavg", server_opt="adam", aggregator="mean", weights="uniform"}'],
        ['data.partition={name="feature_shift", kind="noise"}'],
    ],
)
def test_options_of_a_job(sets: list[str]) -> None:
    run(DIGITS, *sets)


@pytest.mark.slow
@pytest.mark.fetch
def test_riders_are_forecast_and_adapted_to_each_station() -> None:
    data, task = 'name = "chicago"\nclients = 3', 'name = "forecast"\nmodel = { name = "lstm", features = 6, horizon = 7 }'
    result = run(job(data, task, "[evaluation]\nper_client = true", '[personalise]\nname = "sgd"', local=ADAMW))
    assert result.history("personal")


@pytest.mark.slow
@pytest.mark.fetch
def test_real_texts_reach_their_models(models: Path) -> None:
    """The tiny models know none of these words; what counts is that every shape fits."""
    pairs = job('name = "qa"\nclients = 3', f'name = "seq2seq"\nmodel = "{models}/t5"', TOKENS, local=ADAMW)
    assert run(pairs).metrics["loss"] > 0
    task = 'name = "next_token"\nmodel = { name = "transformer", width = 16, layers = 1, heads = 2 }'
    for data in ('name = "shakespeare"\nclients = 2', 'name = "sotu"\nclients = 2'):
        run(job(data, task, "[tokens]\nlength = 32", "[evaluation]\nexamples = 16", local=ADAMW))


def test_ones_own_model_and_training_loop() -> None:
    """The same in Python: a module of one's own, a loop of one's own, unchanged."""
    from atoll import Federation, custom, digits, fedavg, script

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(x.flatten(1))
            return logits

    def train(module: torch.nn.Module, loader: object) -> dict[str, float]:
        optimiser, loss = torch.optim.Adam(module.parameters(), lr=0.01), torch.tensor(0.0)
        for x, y in loader:  # type: ignore[attr-defined]
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(x), y)
            loss.backward()
            optimiser.step()
        return {"loss": loss.item()}

    with seeded(0):
        module = Own()
    task = custom(
        module,
        lambda logits, batch: torch.nn.functional.cross_entropy(logits, batch["y"]),
        {"accuracy": lambda logits, batch: (logits.argmax(1) == batch["y"]).float().mean()},
    )
    result = Federation(task, digits(clients=3), fedavg(script(task, train))).run(rounds=2)
    assert result.metrics["accuracy"] > 0.5
    assert json.loads(json.dumps(result.metrics)) == result.metrics
