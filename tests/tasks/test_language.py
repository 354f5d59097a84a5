"""Causal, sequence-to-sequence and sequence-classification tasks on tiny models of each family."""

import pytest
import torch
from safetensors.torch import load_file
from torch.fx.experimental.proxy_tensor import make_fx

from atoll.errors import ConfigError, DataError, FetchError, UnknownName
from atoll.local.binding import binding
from atoll.models import shapes
from atoll.models.header import header
from atoll.tasks.adapter import Adapter, lora, read
from atoll.tasks.causal_lm import causal_lm
from atoll.tasks.seq2seq import seq2seq
from atoll.tasks.sequence_classification import sequence_classification

IDS = torch.randint(1, 40, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 4 + [0] * 3])
ADAPTER = {"rank": 2, "alpha": 4}
CAUSAL = {"input_ids": IDS, "labels": IDS.masked_fill(MASK == 0, -100)}
ANSWERS = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS[:, :4].masked_fill(MASK[:, 3:] == 0, -100)}
CLASSES = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 2, 1])}
CASES = [
    (causal_lm, "llama", CAUSAL),
    (causal_lm, "tied-llama", CAUSAL),
    (causal_lm, "gpt2", CAUSAL),
    (seq2seq, "t5", ANSWERS),
    (seq2seq, "bart", ANSWERS),
    (lambda model, **kw: sequence_classification(model, 3, **kw), "bert", CLASSES),
]
FAMILIES = [family for _, family, _ in CASES]


def nudged(params):
    """Somewhere else than the start, where the adapter's B is zero."""
    g = torch.Generator().manual_seed(5)
    return {name: (x.detach() + 0.1 * torch.randn(x.shape, generator=g)).requires_grad_() for name, x in params.items()}


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["whole", "lora"])
@pytest.mark.parametrize(("factory", "family", "batch"), CASES, ids=FAMILIES)
def test_bound_parameters_and_a_captured_graph_give_the_module_s_own_gradient(
    saved, gradient, plain, factory, family, batch, adapter
):
    task = factory(saved(family), adapter=adapter, dtype="fp32")
    task.module.eval()
    params = plain(task.module)
    own = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
    assert list(own) == list(params)
    loss = task.loss(task.forward(task.module, batch), batch)
    wanted = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
    assert any(g.any() for g in wanted)

    def step(params, batch):
        binding(task.module).bind(params, {})
        loss = task.loss(task.forward(task.module, batch), batch)
        return loss, torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)

    bound_loss, bound = step(params, batch)
    torch.testing.assert_close(bound_loss, loss)
    torch.testing.assert_close(list(bound), list(wanted))
    # transformers looks into real masks to take a shorter way; of fake tensors it asks only the shape
    capture = make_fx(
        lambda p, b: step({name: x.detach().requires_grad_() for name, x in p.items()}, b),
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )
    graph = capture(params, batch)
    other = nudged(params)
    torch.testing.assert_close(list(graph(other, batch)[1]), list(step(other, batch)[1]))


@pytest.mark.parametrize(("factory", "family", "batch"), CASES, ids=FAMILIES)
def test_the_saved_adapter_loads_with_peft(saved, plain, tmp_path, factory, family, batch):
    from peft import PeftModel

    task = factory(saved(family), adapter=ADAPTER, dtype="fp32")
    task.module.eval()
    params = nudged(plain(task.module))
    binding(task.module).bind(params, {})
    wanted = task.forward(task.module, batch)
    task.save({name: x.detach() for name, x in params.items()}, str(tmp_path))
    base = factory(saved(family), dtype="fp32").module
    again = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert torch.equal(task.forward(again, batch), wanted)


@pytest.mark.parametrize(("factory", "family", "batch"), CASES, ids=FAMILIES)
def test_the_saved_model_loads_with_transformers(saved, plain, tmp_path, factory, family, batch):
    task = factory(saved(family))
    task.module.eval()
    params = nudged(plain(task.module))
    binding(task.module).bind(params, {})
    wanted = task.forward(task.module, batch)
    task.save({name: x.detach() for name, x in params.items()}, str(tmp_path))
    again = factory(str(tmp_path)).module.eval()
    torch.testing.assert_close(task.forward(again, batch), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("factory", "family", "batch"), CASES, ids=FAMILIES)
def test_an_adapter_alone_is_trained_in_float32_over_a_bf16_base(saved, gradient, plain, factory, family, batch):
    task = factory(saved(family), adapter=ADAPTER, dtype="bf16")
    trained = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    base = [p for p in task.module.parameters() if not p.requires_grad]
    assert sum(p.numel() for p in base if p.dtype == torch.bfloat16) > 0.9 * sum(p.numel() for p in base)
    loss, grads = gradient(task, batch, plain(task.module))
    assert loss.isfinite()
    assert {g.dtype for g in grads} == {torch.float32}


@pytest.mark.parametrize("family", ["llama", "tied-llama", "gpt2", "t5", "bert"])
def test_lora_shapes_are_known_without_torch(saved, plain, family):
    factory = {"t5": seq2seq, "bert": sequence_classification}.get(family, causal_lm)
    module = factory(saved(family), adapter=lora(rank=3), dtype="fp32").module
    base = {name: stored.shape for name, stored in header(saved(family)).items()}
    known = shapes.lora(base, rank=3)
    real = {name: tuple(x.shape) for name, x in plain(module).items() if "lora_" in name}
    assert sorted(known.values()) == sorted(real.values())
    if family in ("llama", "tied-llama", "t5"):  # the others are saved without their head, and named without its prefix
        assert known == real


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("tied-llama", True)])
def test_llama_shapes_without_torch(saved, family, tied):
    stored = {name: tensor.shape for name, tensor in header(saved(family)).items()}
    assert shapes.llama(40, 16, layers=2, heads=4, key_heads=2, inner=24, tied=tied) == stored


def test_bert_shapes_without_torch(saved):
    stored = {name: tensor.shape for name, tensor in header(saved("bert")).items()}
    assert shapes.bert(40, 16, layers=2, inner=24, context=32) == stored


def test_gradient_checkpointing_changes_no_gradient(saved, gradient, plain):
    wanted = None
    for checkpointing in (False, True):
        task = causal_lm(saved("llama"), adapter=ADAPTER, dtype="fp32", gradient_checkpointing=checkpointing)
        task.module.train()
        assert task.module.is_gradient_checkpointing == checkpointing
        got = gradient(task, CAUSAL, nudged(plain(task.module)))
        wanted = wanted or got
        torch.testing.assert_close(got, wanted)


def test_dropout_is_off_in_evaluation(saved):
    task = causal_lm(saved("llama"), adapter={**ADAPTER, "dropout": 0.5}, dtype="fp32")
    params = nudged(binding(task.module).state())
    binding(task.module).bind(params, {})
    task.module.eval()
    assert torch.equal(task.forward(task.module, CAUSAL), task.forward(task.module, CAUSAL))
    task.module.train()
    assert not torch.equal(task.forward(task.module, CAUSAL), task.forward(task.module, CAUSAL))


def test_causal_loss_is_that_of_transformers(saved):
    task = causal_lm(saved("llama"))
    task.module.eval()
    wanted = task.module(input_ids=IDS, labels=CAUSAL["labels"]).loss
    torch.testing.assert_close(task.loss(task.forward(task.module, CAUSAL), CAUSAL), wanted)
    assert task.count(CAUSAL) == 6 + 4 + 3


def test_seq2seq_loss_is_that_of_transformers(saved):
    task = seq2seq(saved("t5"))
    task.module.eval()
    wanted = task.module(**ANSWERS).loss
    torch.testing.assert_close(task.loss(task.forward(task.module, ANSWERS), ANSWERS), wanted)
    assert task.count(ANSWERS) == 4 + 2 + 1


def test_the_start_depends_on_the_seed_alone(saved, plain):
    before = torch.get_rng_state()
    a, b, c = (plain(sequence_classification(saved("bert"), adapter=ADAPTER, seed=s).module) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize(
    ("table", "error", "text"),
    [
        ({"rnk": 2}, UnknownName, "did you mean 'rank'"),
        ({"rank": 0}, ConfigError, "rank 0 must be"),
        ({"rank": 2.5}, ConfigError, "rank 2.5 must be"),
        ({"alpha": 0}, ConfigError, "alpha 0 must be above 0"),
        ({"dropout": 1.0}, ConfigError, "dropout 1.0 must be"),
        ({"targets": "q_proj"}, ConfigError, "must be a list of layer names"),
        ({"targets": []}, ConfigError, "must be a list of layer names"),
        ({"targets": ["q_porj"]}, UnknownName, "did you mean 'q_proj'"),
        ([8], ConfigError, "must be a table"),
    ],
)
def test_a_wrong_adapter_is_refused(saved, table, error, text):
    with pytest.raises(error, match=text):
        causal_lm(saved("llama"), adapter=table)


def test_an_adapter_is_a_value():
    assert read({"rank": 4, "targets": ["q_proj"]}) == lora(rank=4, targets=["q_proj"]) == Adapter(4, 16.0, 0.0, ("q_proj",))
    assert read(None) is None


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no model that AutoModelForCausalLM reads"):
        causal_lm(str(tmp_path))


def test_a_model_that_is_nowhere_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="neither a known name"):
        causal_lm("no-such/model-at-all")


def test_an_adapter_file_holds_the_adapter_and_no_more(saved, plain, tmp_path):
    task = causal_lm(saved("llama"), adapter=ADAPTER)
    task.save(plain(task.module), str(tmp_path))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len(stored) == len(plain(task.module)) == 8
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in stored)
