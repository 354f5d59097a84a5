"""From a checked job to a federation: each section's factory is called, and what it needs is wired by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll import catalog
from atoll.errors import AtollError, ConfigError, JobError
from atoll.job import values
from atoll.job.check import WIRED, check, problems_of, spelling
from atoll.job.compress import chosen
from atoll.job.schema import Job, Named
from atoll.job.text import Document, load
from atoll.types import ClientId

if TYPE_CHECKING:
    from atoll.federation import Federation
    from atoll.policy import Policy
    from atoll.types import Batch, Dataset, Task

SECTION = {
    "dataset": "data",
    "partition": "data.partition",
    "model": "task.model",
    "transform": "transforms",
    "energy": "fleet.energy",
}


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """A job file, read and checked; `overrides` are `key=value`, as for `atoll run --set`.

    Raises:
        ConfigError: the file can't be read.
        JobError: it has problems; all of them, with their lines.
        VersionError: a newer Atoll wrote it.

    >>> from atoll.job.templates import named
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "first.toml"
    >>> _ = file.write_text(named("fashion", "first"))
    >>> load_job(file, ["rounds=2"]).rounds
    2
    """
    return check(load(path, overrides))


def dataset_of(document: Document) -> Dataset:
    """The data set of a document's [data], the rest of which may be missing.

    Raises:
        JobError: [data] has problems.
    """
    problems = list(problems_of(document, "data"))
    if problems:
        raise JobError(f"{document.place(problem.spot)}: {problem.text}" for problem in problems)
    given = document.values["data"]
    dataset: Dataset = make("dataset", Named.of(given), seed=int(document.values.get("seed", 0)))
    return dataset


def build(job: Job, dataset: Dataset | None = None) -> Federation:
    """The federation that the job describes: its data read, its model loaded, ready to run.

    `dataset`: in the place of the job's own, as a site has it.

    Raises:
        AtollError: the data or the model can't be had, or the parts do not go together.
    """
    from atoll.federation import Federation
    from atoll.local.binding import binding

    dataset = _judged(data_of(job) if dataset is None else _tokenised(dataset, job), job)
    task = make("task", job.task, seed=job.seed)
    _fits(task, dataset, job)
    policy: Policy = make("policy", job.policy)
    regions = {ClientId(name): count for name, count in job.regions.items()}
    population = len(dataset.clients) + sum(count - 1 for name, count in regions.items() if name in dataset.clients)
    job = chosen(job, sum(x.numel() for x in binding(task.module).state().values()), _participation(policy, population)).job
    wired = {"task": task, "seed": job.seed, "population": population, "participation": _participation(policy, population)}
    local = make("local", job.local, **wired) if job.local else None
    judged: dict[str, Any] = {"evaluate_batch_size": job.evaluation.batch_size} if job.evaluation.batch_size else {}
    return Federation(
        task,
        dataset,
        make("algorithm", job.algorithm, local=local, **wired),
        policy=policy,
        transforms=[make("transform", each, **wired) for each in job.transforms],
        broadcast=make("transform", job.broadcast, **wired) if job.broadcast else None,
        engine=job.engine.name if _own(job.engine) else catalog.find("engine", job.engine.name).load(),
        engine_options=job.engine.parameters,
        evaluate_every=job.evaluation.every or job.rounds,
        evaluate_clients=job.evaluation.per_client,
        finetune=make("local", job.personalise, **wired) if job.personalise else None,
        selection=make("selection", job.selection, **wired) if job.selection else None,
        fleet=make("fleet", job.fleet, **wired) if job.fleet else None,
        regions=regions,
        seed=job.seed,
        **judged,
    )


def data_of(job: Job) -> Dataset:
    """The data set of a job as its task reads it: texts are tokens, kept in the cache folder from an earlier run or now.

    Raises:
        AtollError: the data or the tokenizer can't be had, or do not go together.
    """
    return _tokenised(make("dataset", job.data, seed=job.seed), job)


def make(kind: str, named: Named, **wired: Any) -> Any:
    """Call the factory of that name; `wired` fills the parameters that the job does not set itself.

    >>> make("policy", Named(name="synchronous", clients_per_round=5)).in_flight
    5
    """
    entry, given = catalog.find(kind, named.name), named.parameters
    arguments: dict[str, Any] = {}
    for parameter in entry.parameters:
        key = spelling(parameter)
        if key in given:
            arguments[parameter.name] = _made(parameter.annotation, given[key], wired)
        elif parameter.name in WIRED.get(kind, ()) and parameter.name in wired:
            arguments[parameter.name] = wired[parameter.name]
    try:
        return entry.load()(**arguments)
    except ConfigError as error:
        if str(error).startswith("["):
            raise  # a part of this one has said where it is
        raise type(error)(f"[{SECTION.get(kind, kind)}] {error}") from error


def _made(annotation: str, value: Any, wired: dict[str, Any]) -> Any:
    """A value as the job sets it, or what the factories that it names make."""
    nested, each = values.kind_of(annotation), values.kind_of_each(annotation)
    if each and isinstance(value, list):
        return [make(each, Named.of(part), **wired) for part in value]
    if not nested or not isinstance(value, dict | str) or (isinstance(value, str) and values.settable(annotation)):
        return value
    return make(nested, Named.of(value), **wired)


def _participation(policy: Policy, clients: int) -> float:
    """The share of the clients that a round hears."""
    return min((policy.close_after or policy.in_flight or clients) / clients, 1.0)


def tokenizer_of(job: Job) -> Any:
    """The tokenizer of the task's pretrained model, or None where the task names none.

    Raises:
        FetchError: the model is not there and can't be fetched.
    """
    model = _pretrained(job)
    if model is None:
        return None
    from atoll.tasks.pretrained import tokenizer

    return tokenizer(model)


def _pretrained(job: Job) -> str | None:
    """The name of the task's pretrained model, or None where the task names none."""
    parameter = catalog.find("task", job.task.name).parameter("model")
    if parameter is None or values.kind_of(parameter.annotation) is not None:
        return None
    model: str = job.task.parameters.get("model", parameter.default)
    return model


def _fits(task: Task, dataset: Dataset, job: Job) -> None:
    """Some examples through the model: shapes, types and classes that do not fit are said before anything is started.

    Raises:
        ConfigError: the task can't read the data, or the model is not for it.
    """
    import torch

    training = task.module.training
    task.module.eval()
    try:
        for batch in _telling(dataset):
            try:
                with torch.no_grad():
                    task.loss(task.forward(task.module, batch), batch)
            except (AtollError, RuntimeError, ValueError, IndexError, TypeError) as error:
                told = str(error).partition("\n")[0].rstrip(".")
                raise ConfigError(
                    f"[task] {job.task.name} can't read {dataset.name}: {told}; one example is {_shown(batch)}"
                ) from error
    finally:
        task.module.train(training)


def _telling(dataset: Dataset) -> Iterator[Batch]:
    """One example, and for each column of whole numbers (classes, tokens) one that has the largest: it may be too large."""
    import torch

    from atoll.data.examples import Tensors
    from atoll.data.spans import Spans

    if isinstance(dataset.clients, Spans) and dataset.clients.telling is not None:
        yield from (dataset.clients.whole.take(torch.tensor([row])) for row in dataset.clients.telling)
        return
    held = [e for splits in dataset.clients.values() for e in splits.values() if len(e) > 0]  # who has none is told when asked
    if held:
        yield held[0].take(torch.arange(1))
    within = [each for each in held if isinstance(each, Tensors)]
    for name in [name for name, x in within[0].columns.items() if not x.is_floating_point()] if within else []:
        largest = [each.column(name).flatten(1).amax(1) if each.columns[name].dim() > 1 else each.column(name) for each in within]
        most = max(range(len(within)), key=lambda i: int(largest[i].max()))
        yield within[most].take(largest[most].argmax().view(1))


def _shown(batch: Batch) -> str:
    """`x float32 (1, 64), y int64 (1,) up to 9`"""
    told = []
    for name, x in batch.items():
        up_to = "" if x.is_floating_point() or not x.numel() else f" up to {int(x.max())}"
        told.append(f"{name} {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}{up_to}")
    return ", ".join(told)


def _own(engine: Named) -> bool:
    return catalog.find("engine", engine.name).module.startswith("atoll.")


def _tokenised(dataset: Dataset, job: Job) -> Dataset:
    """Texts as tokens, in the form that the task reads; other data as it is."""
    from atoll.data import text
    from atoll.data.characters import characters

    first = next((splits["train"] for splits in dataset.clients.values() if "train" in splits), dataset.test)
    if not isinstance(first, text.Texts):
        return dataset
    task, length = job.task.name, job.tokens.length

    def made() -> Dataset:
        tokenizer = tokenizer_of(job) or characters(dataset)
        if task == "sequence_classification":
            return text.tokenise_classes(dataset, tokenizer, length)
        if task == "seq2seq":
            return text.tokenise_pairs(dataset, tokenizer, length, job.tokens.target_length)
        return text.tokenise(dataset, tokenizer, length)

    model = _pretrained(job)
    if model is None or not job.tokens.keep:
        return made()  # characters take no longer to tokenise than to read
    from atoll.data.tokens import kept
    from atoll.tasks.pretrained import pretrained

    return kept(dataset, pretrained(model), [task, length, job.tokens.target_length], made)


def _judged(dataset: Dataset, job: Job) -> Dataset:
    """With so many held-out examples as the evaluation asks for, the same in every run of one seed."""
    from atoll import rng
    from atoll.federation import Share

    wanted = job.evaluation.examples
    if wanted is None or dataset.test is None or wanted >= len(dataset.test):
        return dataset
    chosen = rng.permutation(len(dataset.test), job.seed, "held-out examples")[:wanted].sort().values
    return dataset._replace(test=Share(dataset.test, chosen))
