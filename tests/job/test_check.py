"""Every problem of a job file at once, each with its line; nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atoll.errors import JobError, VersionError
from atoll.job.check import check, clients_of
from atoll.job.text import parse

GOOD = """atoll = 1
rounds = 10
[data]
name = "fashion_mnist"
clients = 10
[data.partition]
name = "dirichlet"
alpha = 0.3
[task]
name = "classification"
[task.model]
name = "cnn"
[local]
name = "sgd"
lr = 0.05
[algorithm]
name = "fedavg"
[[transforms]]
name = "clip"
norm = 1.0
[policy]
name = "synchronous"
clients_per_round = 5
"""


def problems(text: str, *sets: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        check(parse(text, overrides=sets))
    return list(caught.value.problems)


def test_a_right_file_is_a_job() -> None:
    job = check(parse(GOOD))
    assert (job.rounds, job.algorithm.name, job.local.parameters if job.local else None) == (10, "fedavg", {"lr": 0.05})
    assert job.transforms[0].parameters == {"norm": 1.0}
    assert (job.engine.name, job.evaluation.every) == ("serial", 1)
    assert clients_of(job) == 10


def test_all_problems_at_once_in_the_files_order() -> None:
    text = """atoll = 1
seed = -1
rounds = "ten"
[data]
name = "fashion_mnits"
[task]
name = "classification"
[task.model]
name = "cnn"
filters = 3
kernle = 3
[local]
name = "sgd"
lr = -1
schedule = 4
[algorithm]
name = "fedavg"
[algorithm.server_opt]
name = "momentum"
beta = 2
[[transforms]]
norm = 1
[[transforms]]
name = "clip"
[policy]
name = "synchronous"
on_failure = "panic"
[evaluation]
evry = 1
[engin]
name = "serial"
"""
    assert problems(text) == [
        "job.toml:2: seed = -1: must be 0 or more",
        'job.toml:3: rounds = "ten": must be a whole number',
        "job.toml:5: [data] no dataset is called 'fashion_mnits'; did you mean 'fashion_mnist'? Known: "
        + problems(text)[2].partition("Known: ")[2],
        "job.toml:10: [task.model] filters = 3: must be a list, each a whole number",
        "job.toml:11: [task.model] cnn has no parameter 'kernle'; did you mean 'kernel'?",
        "job.toml:14: [local] lr = -1: must be above 0",
        "job.toml:15: [local] schedule = 4: must be a text in quotes",
        "job.toml:20: [algorithm.server_opt] beta = 2: must be 0 or more and below 1",
        "job.toml:21: [[transforms]] number 1: name is missing: a name from `atoll catalog transform`",
        "job.toml:23: [[transforms]] number 2: norm is missing: clip has no default for it",
        "job.toml:27: [policy] on_failure = \"panic\": must be 'drop' or 'stop'",
        "job.toml:29: [evaluation] there is no key 'evry'; did you mean 'every'?",
        "job.toml:30: there is no section [engin]; did you mean 'engine'?",
    ]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("local.lr=0", "[local] lr = 0: must be above 0"),
        ("policy.clients_per_round=11", "[policy] clients_per_round = 11: there are only 10 clients; ask 10 or fewer"),
        ("policy.min_updates=9", "[policy] policy min_updates = 9 is above close_after = 5"),
        ("data.partition=natural", "[data.partition] by is missing: natural has no default for it"),
        ("data.partition=dirichle", "[data.partition] no partition is called 'dirichle'; did you mean 'dirichlet'?"),
        ("task.model=cn", "[task.model] no model is called 'cn'; did you mean 'cnn'?"),
        ("task.modle=cnn", "[task] classification has no parameter 'modle'; did you mean 'model'?"),
        ("local.task=x", "[local] sgd has no parameter 'task'; it has lr, batch_size"),
        ("local=script", "[local] train is missing: script takes Callable"),
        ("algorithm.name=fedsgd", "[local] does not go with fedsgd, which says itself what its clients do: remove it"),
        ("engine=threads", "no engine is called 'threads'; did you mean 'traced'? Known: auto, processes, "),
        ("engine.workers=0", "[engine] name is missing: a name from `atoll catalog engine`"),
        ('engine={name="processes", workers=0}', "[engine] workers = 0: must be 1 or more"),
        ('engine={name="serial", workers=2}', "[engine] serial has no parameter 'workers'; it has threads"),
        ("transforms=clip", "[[transforms]] tables"),
        ("data=3", "data = 3: must be a table, [data]"),
        ("rounds=0", "rounds = 0: must be 1 or more"),
        ("atoll=0", "atoll = 0: must be 1, the format of this file"),
        ("evaluation.every=true", "[evaluation] every = true: must be a whole number"),
        ("task.model.size=32", "[task.model] size = 32: must be 28, since an example of fashion_mnist is 1 x 28 x 28"),
        ("task.model.outputs=7", "[task.model] outputs = 7: must be 10 or more, the classes of fashion_mnist"),
        ('task.model={name="mlp", inputs=783}', "[task.model] inputs = 783: must be 784"),
        ('policy={name="over_selecting", clients_per_round=9}', "over_selecting asks 12 clients at once, but there are only 10"),
        ("algorithm.name=scaffold", "number 1: 'clip' bounds the norm of an update, but this algorithm's clients send more"),
        ('transforms=[{name="cast"}, {name="cast"}]', "number 2: 'cast' is attached twice; keep one"),
        ('transforms=[{name="cast"}, {name="clip", norm=1}]', "'clip' bounds the norm of what 'cast' has encoded; put"),
        ('algorithm={name="mimelite"}\nlocal.momentum=0.9', "[local] sgd with momentum: mimelite is defined for plain SGD"),
        ("samples.tokens=5", "[samples] prompt is missing"),
        ('samples={prompt="Who is there?"}', "[samples] needs the task causal_lm: classification continues no text"),
        ("personalise=sgdd", "[personalise] no local is called 'sgdd'; did you mean 'sgd'?"),
        ("personalise={lr=1}", "[personalise] name is missing: a name from `atoll catalog local`"),
        ('task={name="causal_lm", adapter={rnk=8}}', "[task.adapter] no adapter setting is called 'rnk'; did you mean 'rank'?"),
        ('task={name="causal_lm", adapter={rank=0}}', "[task.adapter] adapter rank 0 must be a whole number of at least 1"),
    ],
)
def test_each_problem_is_said_and_points_at_its_override(override: str, says: str) -> None:
    (problem,) = problems(GOOD, *override.split("\n"))
    assert says in problem
    assert problem.startswith((f"--set {override}: ", "job.toml:"))


def test_missing_sections_are_named() -> None:
    found = problems("rounds = 3\n")
    assert [text for text in found if "atoll is missing: write `atoll = 1` first" in text]
    for section in ("data", "task", "algorithm"):
        assert [text for text in found if f"[{section}] is missing" in text]
    (one,) = problems(GOOD.replace('[local]\nname = "sgd"\nlr = 0.05\n', ""))
    assert "[local] is missing: fedavg needs the clients' work" in one


def test_a_newer_format_says_to_upgrade() -> None:
    with pytest.raises(VersionError, match="format 2, and this Atoll reads up to 1"):
        check(parse(GOOD.replace("atoll = 1", "atoll = 2\nfuture = true")))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in ("mlflow", "tensorboard") else real(name, *rest)
    )
    (problem,) = problems(GOOD, "sinks.mlflow.experiment=x")
    assert problem == "--set sinks.mlflow.experiment=x: [sinks.mlflow] needs the package 'mlflow': pip install 'atoll[mlflow]'"


def test_checking_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(GOOD)
    code = (
        "import sys; from atoll.job.text import load; from atoll.job.check import check; from atoll.job.plan import rows;"
        f"list(rows(check(load({str(tmp_path / 'job.toml')!r}))));"
        "heavy = {'torch', 'numpy', 'pandas', 'sqlalchemy', 'matplotlib', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
