"""A checked job carried out in a run: built, trained, its model saved, its passages continued before and after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.errors import StoreError
from atoll.job.build import build, tokenizer_of
from atoll.job.schema import Job

if TYPE_CHECKING:
    from atoll.federation import Federation
    from atoll.interfaces import Sink
    from atoll.result import Result
    from atoll.store.run import Run
    from atoll.types import Tree


class Outcome(NamedTuple):
    """A finished run."""

    result: Result
    model: str  # where its files are: a folder, or a URL
    passages: tuple[tuple[str, str], ...]  # (before | after, the prompt and what the model wrote after it)


def carry_out(
    job: Job,
    run: Run,
    sinks: Sequence[Sink] = (),
    say: Callable[[str], None] = lambda _: None,
    each_round: Callable[[int, Tree], None] | None = None,
    make: Callable[[Job], Federation] = build,
) -> Outcome:
    """Train what the job describes, going on from the run's last checkpoint if it has one.

    `say` hears what is being done before the first round; `each_round` is as in `Federation.run`;
    `make` gives the federation that is run: another than the job's alone describes where that is deployed.

    Raises:
        AtollError: the data or the model can't be had, the parts do not go together, or a round can't be closed.
    """
    say("reading the data, loading the model")
    federation = make(job)
    run.note("task", federation.task.about)
    passages = []
    if job.samples:
        say("continuing the passage, before training")
        passages.append(("before", _passage(job, federation, None)))
        run.note("passage before", passages[-1][1])
    say("training")
    with _outside(job, run) as more:
        result = federation.run(job.rounds, store=run, sinks=[*sinks, *more], each_round=each_round)
    model = run.keep_model(result.save)
    if job.samples:
        say("continuing the passage, after training")
        passages.append(("after", _passage(job, federation, result.params)))
        run.note("passage after", passages[-1][1])
    return Outcome(result, model, tuple(passages))


@contextlib.contextmanager
def _outside(job: Job, run: Run) -> Iterator[list[Any]]:
    """The sinks of [sinks], closed at the end; MLflow is told whether it was a good one."""
    opened: list[Any] = []
    try:
        if job.sinks.tensorboard:
            from atoll.store.tensorboard import TensorBoard

            opened.append(TensorBoard(job.sinks.tensorboard.folder or run.folder / "tensorboard"))
        if job.sinks.mlflow:
            from atoll.store.mlflow import MLflow

            uri = job.sinks.mlflow.uri or f"sqlite:///{run.folder / 'mlflow.db'}"
            opened.append(MLflow(uri, run.id, experiment=job.sinks.mlflow.experiment, config=job.model_dump(exclude_none=True)))
        yield opened
    except BaseException as error:
        for sink in opened:  # the error that ended the run matters more than one of closing
            with contextlib.suppress(StoreError):
                _closed(sink, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    for sink in opened:
        _closed(sink, "FINISHED")


def _closed(sink: Any, status: str) -> None:
    from atoll.store.mlflow import MLflow

    if isinstance(sink, MLflow):
        sink.close(status)
    else:
        sink.close()


def _passage(job: Job, federation: Federation, parameters: Tree | None) -> str:
    from atoll.tasks.generation import continue_text

    assert job.samples is not None
    prompt, tokens, temperature = job.samples.prompt, job.samples.tokens, job.samples.temperature
    return prompt + continue_text(federation.task, tokenizer_of(job), prompt, tokens, job.seed, temperature, parameters)
